"""CPU tensors: the NumPy reference itself, so that everything runs without a GPU and without Triton."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .reference.formats import stochastic_bfloat16
from .state import STEP, State, Storage, is_scalar_slot, rounded
from .table import Algorithm


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A float64 copy on the host."""
    array: np.ndarray[Any, Any] = tensor.detach().to("cpu", torch.float64, copy=True).numpy()
    return array


def reference_step(
    algorithm: Algorithm,
    param: torch.Tensor,
    grad: torch.Tensor,
    state: State,
    hyper: Mapping[str, Any],
    storage: Storage,
    origin: int,
    grad_scale: float,
) -> None:
    """One parameter's step in float64, stored back in the tensors' formats; the step count is left to the plan."""
    step = int(state[STEP]) + 1
    gradient = to_numpy(grad)
    if grad_scale != 1.0:
        gradient = gradient * grad_scale
    slots = {slot: to_numpy(tensor) for slot, tensor in state.items() if slot != STEP}
    with np.errstate(all="ignore"):
        new_param, new_slots = algorithm.reference.update(to_numpy(param), gradient, slots, step, **hyper)
    if param.dtype == torch.bfloat16 and storage.rounding == "stochastic":
        index = torch.empty_like(param, dtype=torch.int64)
        flat = index.as_strided((index.numel(),), (1,))
        flat.copy_(torch.arange(origin, origin + index.numel()))
        values = torch.from_numpy(stochastic_bfloat16(new_param, storage.seed, step, index.numpy()))
        param.detach().copy_(values)
    else:
        param.detach().copy_(rounded(new_param, param.dtype))
    store_slots(algorithm, state, new_slots)


def reference_hessian(algorithm: Algorithm, estimate: torch.Tensor, state: State, hyper: Mapping[str, Any]) -> None:
    """One parameter's `update_hessian`."""
    slots = {slot: to_numpy(tensor) for slot, tensor in state.items() if slot != STEP}
    with np.errstate(all="ignore"):
        new_slots = algorithm.reference.update_hessian(slots, to_numpy(estimate), betas=hyper["betas"])
    store_slots(algorithm, state, new_slots)


def store_slots(algorithm: Algorithm, state: State, slots: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Writes slots back into their tensors."""
    for slot, values in slots.items():
        if is_scalar_slot(algorithm, slot):
            state[slot].fill_(float(values))
        else:
            state[slot].copy_(rounded(np.asarray(values), state[slot].dtype))
