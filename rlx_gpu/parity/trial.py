"""A trial: one optimizer in one storage, the kernels and the reference side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

import rlx_gpu

from .. import launch, reference
from ..dispatch import runs_kernels
from ..optimizer import origin
from ..state import DTYPE_NAMES, STEP
from .cases import Array, Case, gradient, normal, places, tensor_of
from .formats import Interval, distance, nearest, stochastic
from .outcome import Error, Outcome
from .tolerances import JUMP, NUDGE, Storage, tolerance
from .variants import Variant

SEED = 2**33 + 1  # of stochastic rounding: both words of the key count
EARLY, LATE = 2, 1000  # the first steps, then those from LATE on: RAdam's second branch, bias corrections near 1
Arrays = dict[str, Array]  # by "param/<name>", "<slot>/<name>" and "step/<name>"


class Trial:
    """Steps an optimizer of `rlx_gpu` on tensors, and after every step asks the reference what it should have done.

    Args:
        variant: the optimizer.
        storage: formats.
        cases: the parameters, all stepped in one batch.
        device: where they lie.
    """

    def __init__(self, variant: Variant, storage: Storage, cases: Sequence[Case], device: torch.device) -> None:
        self.variant, self.storage, self.cases, self.device = variant, storage, cases, device
        self.rng = np.random.default_rng(23)
        options = {"state_dtype": storage.state, "rounding": storage.rounding, "seed": SEED}
        self.kernels = variant.make(rlx_gpu, device=device, **options)
        self.params = {
            case.name: tensor_of(normal(case, self.rng, storage.param), storage.param, case.layout, device)
            for case in cases
        }
        self.tolerances = {case.name: tolerance(variant.spec(len(case.shape)), storage) for case in cases}
        self.outcome = Outcome()
        self.t = self.steps = 0
        self._warm_up(max((row.warm for row in self.tolerances.values()), default=0))

    def step(self) -> None:
        """One update of every parameter, and of the Hessian where the optimizer keeps one; compares all arrays."""
        if self.steps == EARLY:
            self._count_from(LATE - 1)
        self.steps += 1
        self.t += 1
        grads = {case.name: gradient(case, self.rng, self.storage.grad, self.t) for case in self.cases}
        estimates = self._estimates()
        before, before_launches = self._stored(), launch.launches.total()
        self._step_kernels(grads, estimates)
        launched = launch.launches.total() - before_launches
        self.outcome.launches += launched
        if not launched or not runs_kernels(self.device):
            self.outcome.fail(self.t, "no kernel ran, the NumPy reference stepped in")
        after, wanted = self._stored(), self._reference(before, grads, estimates)
        if differing := after.keys() ^ wanted.keys():
            self.outcome.fail(self.t, f"one side only has {', '.join(sorted(differing))}")
        errors = self._errors(before, after, wanted)
        if not all(error.passed for error in errors.values()):
            errors = self._errors(before, after, wanted, self._spread(before, grads, estimates))
        for key, error in errors.items():
            self.outcome.add(self.t, key.partition("/")[0], error)

    def _errors(self, before: Arrays, after: Arrays, wanted: Arrays, spread: Arrays | None = None) -> dict[str, Error]:
        """The error of every array; a second look takes off the `spread` where that is a jump of the reference."""
        kept = self.kernels.state_dict()
        errors = {}
        for key in (key for key in wanted if key in after):
            (slot, _, name), found, values = key.partition("/"), after[key], wanted[key]
            if found.shape != values.shape:
                errors[key] = Error(name, np.inf, 0.0)
                continue
            old = before.get(key, np.zeros(values.shape))
            scale = max(largest(old), largest(values))
            off = distance(found, values, self._interval(slot, name, found, kept.get(key)))
            if spread is not None:
                off = np.maximum(off - np.where(spread[key] > JUMP * scale, spread[key], 0.0), 0.0)
            allowed = self.tolerances[name].allowed(slot, scale, largest(values - old))
            unit = scale or 1.0
            errors[key] = Error(name, largest(off) / unit, allowed / unit)
        return errors

    def _interval(self, slot: str, name: str, found: Array, kept: Any) -> Interval:
        """What the stored numbers may stand for."""
        if slot != "param":
            return nearest(found, DTYPE_NAMES[kept.dtype] if isinstance(kept, torch.Tensor) else "float64")
        if self.storage.rounding == "stochastic":
            index = origin(name) + places(self.params[name])
            return stochastic(found, SEED, self.t, index)
        return nearest(found, self.storage.param)

    def _spread(self, before: Arrays, grads: Arrays, estimates: Arrays) -> Arrays:
        """How far the reference moves where every gradient moves by little more than float32 rounding."""
        up, down = (
            self._reference(before, {name: np.asarray(grad * factor) for name, grad in grads.items()}, estimates)
            for factor in (1.0 + NUDGE, 1.0 - NUDGE)
        )
        return {key: np.abs(up[key] - down[key]) for key in up}

    def _step_kernels(self, grads: Arrays, estimates: Arrays) -> None:
        """The kernels' step."""
        layouts = {case.name: "unaligned" if case.layout == "unaligned" else "contiguous" for case in self.cases}
        tensors, curvatures = (
            {name: tensor_of(values, self.storage.grad, layouts[name], self.device) for name, values in arrays.items()}
            for arrays in (grads, estimates)
        )
        with np.errstate(all="ignore"):  # interpreted, lanes beyond a tensor's end compute on zeros
            self.kernels.step_batch(
                (case.name, case.shape, self.params[case.name], tensors[case.name]) for case in self.cases
            )
            self.kernels.end_iteration()
            for name, curvature in curvatures.items():
                self.kernels.update_hessian(name, curvature)

    def _reference(self, before: Arrays, grads: Arrays, estimates: Arrays) -> Arrays:
        """The reference's parameters and slots one step after those that the kernels had stored."""
        optimizer = self.variant.make(reference)
        slots = {key: value for key, value in before.items() if not key.startswith("param/")}
        counts = {key: int(value) for key, value in slots.items() if key.startswith(f"{STEP}/")}
        optimizer.load_state_dict(
            {"optimizer": self.variant.algorithm.name, "iteration": self.t - 1, **slots, **counts}
        )
        params = {case.name: before[f"param/{case.name}"].copy() for case in self.cases}
        optimizer.step_batch((name, param.shape, param, grads[name]) for name, param in params.items())
        optimizer.end_iteration()
        for name, estimate in estimates.items():
            optimizer.update_hessian(name, estimate)
        return {f"param/{name}": param for name, param in params.items()} | numbers(optimizer.state_dict())

    def _stored(self) -> Arrays:
        """What the kernels have stored, in float64."""
        params = {f"param/{name}": numpy_of(param) for name, param in self.params.items()}
        return params | numbers(self.kernels.state_dict())

    def _estimates(self) -> Arrays:
        """Estimates of the Hessian's diagonal, positive and negative, for optimizers that take them."""
        if not hasattr(self.kernels, "update_hessian"):
            return {}
        return {case.name: normal(case, self.rng, self.storage.grad, 20.0, mean=8.0) for case in self.cases}

    def _warm_up(self, steps: int) -> None:
        """Lets the reference take the first steps, and both go on from its state."""
        if not steps:
            return
        optimizer = self.variant.make(reference, state_dtype=self.storage.state)
        params = {name: numpy_of(param) for name, param in self.params.items()}
        for t in range(steps):
            grads = {case.name: gradient(case, self.rng, "float32", t) for case in self.cases}
            optimizer.step_batch((name, param.shape, param.copy(), grads[name]) for name, param in params.items())
            optimizer.end_iteration()
        self.kernels.load_state_dict(optimizer.state_dict())
        self.t = steps

    def _count_from(self, step: int) -> None:
        """Makes the kernels go on as if after so many steps; the reference starts from their numbers anyway."""
        state = self.kernels.state_dict()
        self.kernels.load_state_dict(
            {key: step if key.startswith(f"{STEP}/") else value for key, value in state.items()}
        )
        self.t = step


def run_trial(variant: Variant, storage: Storage, cases: Sequence[Case], steps: int, device: torch.device) -> Outcome:
    """What a trial of so many steps finds."""
    trial = Trial(variant, storage, cases, device)
    for _ in range(steps):
        trial.step()
    return trial.outcome


def numbers(state: Mapping[str, Any]) -> Arrays:
    """The slots and step counts of a state dict as NumPy arrays in float64."""
    return {key: numpy_of(torch.as_tensor(value)) for key, value in state.items() if "/" in key}


def numpy_of(tensor: torch.Tensor) -> Array:
    """A contiguous float64 copy on the host."""
    array: Array = np.array(tensor.detach().double().cpu().numpy(), order="C")
    return array


def largest(x: Array) -> float:
    """The largest magnitude, 0 of nothing; NaN of NaN."""
    return float(np.abs(x).max(initial=0.0))
