"""A parameter's state: which buffers it needs, and in which format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .reference.formats import round_to
from .table import Algorithm

State = dict[str, torch.Tensor]
STEP = "step"  # every parameter's own count of updates, a 0-d float32 tensor on the host, like torch's
STATE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDINGS = ("nearest", "stochastic")
PARAM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPE_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in (*PARAM_DTYPES, torch.float64)}


@dataclass(frozen=True)
class Storage:
    """How the numbers of a group of parameters are stored.

    Args:
        state_dtype: "float32" or "bfloat16", of every state slot but those that an optimizer keeps in full precision.
        rounding: "nearest" or "stochastic", of bfloat16 parameters.
        seed: of the stochastic rounding, 64 bits.
    """

    state_dtype: str = "float32"
    rounding: str = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("state_dtype", self.state_dtype, tuple(STATE_DTYPES)),
            ("rounding", self.rounding, ROUNDINGS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be an integer in [0, 2**63), got {self.seed!r}")

    def slot_dtype(self, param: torch.Tensor, *, full: bool = False) -> torch.dtype:
        """The dtype of state slots: `state_dtype`, or float32 (`full`); float64 for float64 parameters (CPU only)."""
        if param.dtype == torch.float64:
            return torch.float64
        return torch.float32 if full else STATE_DTYPES[self.state_dtype]


def is_scalar_slot(algorithm: Algorithm, slot: str) -> bool:
    """Whether a slot is one number per parameter, kept on the host (the step, a running product)."""
    return slot == STEP or slot in getattr(algorithm.reference, "SCALAR_SLOTS", ())


def is_count(tensor: torch.Tensor) -> bool:
    """Whether the tensor's one element is a whole number from 0."""
    number = tensor.item()
    return not tensor.is_complex() and number >= 0 and float(number).is_integer()


def new_slot(
    algorithm: Algorithm, slot: str, initial: np.ndarray[Any, Any], param: torch.Tensor, storage: Storage
) -> torch.Tensor:
    """One slot at its initial value, in the parameter's memory order where it has the parameter's shape."""
    if slot == STEP:
        return torch.zeros((), dtype=torch.float32)
    if is_scalar_slot(algorithm, slot):
        return torch.tensor(float(initial), dtype=torch.float64)
    dtype = storage.slot_dtype(param, full=slot in getattr(algorithm.reference, "FULL_PRECISION_SLOTS", ()))
    if tuple(initial.shape) == tuple(param.shape):
        return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False)
    return torch.zeros(initial.shape, dtype=dtype, device=param.device)


def leave_batch(state: State) -> None:
    """Gives every slot that is a view of a larger tensor memory of its own, so that it keeps no more alive."""
    for slot, tensor in state.items():
        if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size():
            state[slot] = tensor.clone()


def loaded_slot(
    algorithm: Algorithm,
    label: str,
    slot: str,
    value: Any,
    param: torch.Tensor,
    hyper: Mapping[str, Any],
    storage: Storage,
) -> torch.Tensor:
    """A copy of a checkpoint's slot where and how this parameter keeps it; formats are converted, never guessed.

    Raises:
        ValueError: not an array of numbers, or of another shape than the slot; names the key `label`.
    """
    try:
        tensor = value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    except TypeError:
        raise ValueError(f"state dict: {label!r} must be an array of numbers, got {type(value).__name__}") from None
    if slot == STEP:
        return loaded_step(label, tensor)
    initial = algorithm.reference.init_state(tuple(param.shape), **hyper)[slot]
    if tuple(tensor.shape) != tuple(initial.shape):
        raise ValueError(f"state dict: {label!r} has shape {tuple(tensor.shape)}, expected {tuple(initial.shape)}")
    new = new_slot(algorithm, slot, initial, param, storage)
    new.copy_(tensor)
    return new


def loaded_step(label: str, tensor: torch.Tensor) -> torch.Tensor:
    """A checkpoint's step count.

    Raises:
        ValueError: not one whole number from 0; names the key `label`.
    """
    if tensor.numel() != 1 or not is_count(tensor):
        raise ValueError(f"state dict: {label!r} must be one whole number from 0, got {tensor!r}")
    return tensor.reshape(()).to("cpu", torch.float32, copy=True)


def rounded(values: np.ndarray[Any, Any], dtype: torch.dtype) -> torch.Tensor:
    """Float64 values in a tensor's dtype, rounded once."""
    return torch.from_numpy(np.asarray(round_to(values, DTYPE_NAMES[dtype]), order="C")).to(dtype)


def expected_state(
    algorithm: Algorithm, hyper: Mapping[str, Any], param: torch.Tensor, storage: Storage
) -> tuple[dict[str, np.ndarray[Any, Any]], State]:
    """Every slot's initial value, and what its tensor should look like (on the meta device; scalars on the host)."""
    initial = {STEP: np.zeros(()), **algorithm.reference.init_state(tuple(param.shape), **hyper)}
    meta = param.detach().to("meta")
    tensors = {slot: new_slot(algorithm, slot, value, meta, storage) for slot, value in initial.items()}
    return initial, tensors
