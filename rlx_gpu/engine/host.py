"""The driver of CPU tensors: the NumPy reference itself, so that everything runs without a GPU and without Triton."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..reference.formats import stochastic_bfloat16
from ..reference.hyper import scaled
from ..reference.norms import has_nonfinite
from ..table import Algorithm
from .batch import Entry, Settings
from .buckets import BucketMember, Step
from .state import STEP, State, rounded


class HostBucket:
    """Parameters on the CPU, one after the other; unless steps `advance`, gradients are estimates of the Hessian."""

    waits = True  # what is skipped is known before anything is computed

    def __init__(self, algorithm: Algorithm, members: Sequence[BucketMember], *, advance: bool) -> None:
        self.algorithm, self.members = algorithm, members
        self._update: Callable[..., None] = self._param if advance else self._hessian

    def skips(self, step: Step) -> bool:
        """Whether a gradient holds a NaN or infinity."""
        grads = [step.grads[member.index] for member in self.members]
        return has_nonfinite([to_numpy(grad) for grad in grads if grad is not None])

    def step(self, step: Step) -> None:
        """The reference's step of every parameter that has a gradient."""
        for member in self.members:
            grad = step.grads[member.index]
            if grad is not None:
                settings = step.settings[member.entry.group]
                self._update(member.entry, grad, member.state, settings, float(step.grad_scale))

    def _param(self, entry: Entry, grad: torch.Tensor, state: State, settings: Settings, grad_scale: float) -> None:
        """One parameter's step in float64, stored back in the tensors' formats."""
        hyper, storage, param = settings.hyper, settings.storage, entry.param
        if settings.lr is not None:
            hyper = {**hyper, "lr": float(settings.lr)}
        step, values, gradient = int(state[STEP]) + 1, to_numpy(param), to_numpy(grad)
        if grad_scale != 1.0:
            gradient = gradient * grad_scale
        own = scaled(hyper, entry.scale)
        with np.errstate(all="ignore"):
            values, slots = self.algorithm.reference.update(values, gradient, slots_of(state), step, **own)
        if param.dtype == torch.bfloat16 and storage.rounding == "stochastic":
            index = torch.empty_like(param, dtype=torch.int64)
            flat = index.as_strided((index.numel(),), (1,))
            flat.copy_(torch.arange(entry.origin, entry.origin + index.numel()))
            new = torch.from_numpy(stochastic_bfloat16(values, storage.seed, step, index.numpy()))
        else:
            new = rounded(values, param.dtype)
        param.detach().copy_(new)
        self._store(state, slots)
        write(state[STEP], step)

    def _hessian(self, entry: Entry, estimate: torch.Tensor, state: State, settings: Settings, _: float) -> None:
        """One parameter's `update_hessian`."""
        update, betas = self.algorithm.reference.update_hessian, settings.hyper["betas"]
        with np.errstate(all="ignore"):
            self._store(state, update(slots_of(state), to_numpy(estimate), betas=betas))

    def _store(self, state: State, slots: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Writes slots back into their tensors."""
        for slot, values in slots.items():
            if slot in self.algorithm.scalar_slots:
                write(state[slot], float(values))
            else:
                state[slot].copy_(rounded(np.asarray(values), state[slot].dtype))


def write(number: torch.Tensor, value: float) -> None:
    """Writes a number without torch's taking note, as a kernel does: notice is taken of what others write."""
    number.numpy()[...] = value


def slots_of(state: State) -> dict[str, np.ndarray[Any, Any]]:
    """What the reference steps on; of what else lies there it takes no notice."""
    return {slot: to_numpy(one) for slot, one in state.items() if slot != STEP and isinstance(one, torch.Tensor)}


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A float64 copy on the host."""
    array: np.ndarray[Any, Any] = tensor.detach().to("cpu", torch.float64, copy=True).numpy()
    return array
