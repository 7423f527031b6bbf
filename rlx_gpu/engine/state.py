"""A parameter's state: which tensors it has, in which format, and where they are at home."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..kernels.formats import FORMATS, STATE_FORMATS, Buffer
from ..table import Algorithm
from .capture import refuse_capture
from .tables import upload

State = dict[str, torch.Tensor]
STEP = "step"  # every parameter's own count of updates, a 0-d float32 tensor on its device, as in torch's fused mode
ROUNDINGS = ("nearest", "stochastic")
PARAM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPE_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in (*PARAM_DTYPES, torch.float64)}


@dataclass(frozen=True)
class Storage:
    """How the numbers of a group of parameters are stored: state slots (but for those that an optimizer keeps in full
    precision), and bfloat16 parameters, whose stochastic rounding takes its bits from `seed`.
    """

    state_dtype: str = "float32"
    rounding: str = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in {"state_dtype": STATE_FORMATS, "rounding": ROUNDINGS}.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be an integer in [0, 2**63), got {self.seed!r}")

    def param_format(self, param: torch.Tensor) -> str:
        """The name of a parameter's codec."""
        name = DTYPE_NAMES[param.dtype]
        return f"{name}_stochastic" if name == "bfloat16" and self.rounding == "stochastic" else name

    def slot_format(self, param: torch.Tensor, shape: tuple[int, ...], *, full: bool = False) -> str:
        """The name of a slot's codec: `state_dtype`; float32 where the optimizer (`full`) or the shape asks for it."""
        if param.dtype == torch.float64:  # on the CPU only
            return "float64"
        group = max(buffer.group for buffer in buffers(self.state_dtype))
        flat = shape == tuple(param.shape) and param.is_contiguous()
        whole = group == 1 or (flat and math.prod(shape[1:]) % group == 0)
        return self.state_dtype if whole and not full else "float32"


def buffers(format: str) -> tuple[Buffer, ...]:
    """The buffers of a format."""
    return FORMATS[format]


def slot_tensors(slot: str, format: str, shape: tuple[int, ...], param: torch.Tensor) -> State:
    """A slot's buffers, zeros, in the parameter's memory order where they have the parameter's shape."""
    made: State = {}
    for buffer in buffers(format):
        key, dtype = slot + buffer.suffix, getattr(torch, buffer.dtype)
        if buffer.group == 1 and shape == tuple(param.shape):
            made[key] = torch.zeros_like(param, dtype=dtype, requires_grad=False)
        else:
            size = shape if buffer.group == 1 else (shape[0], math.prod(shape[1:]) // buffer.group)
            made[key] = torch.zeros(size, dtype=dtype, device=param.device)
    return made


@dataclass(frozen=True)
class Layout:
    """What a parameter's state consists of: slots of one number with the first one, the formats of the others, and
    what their tensors look like, on the meta device.
    """

    scalars: Mapping[str, float]
    slots: Mapping[str, str]
    tensors: State


def layout(algorithm: Algorithm, hyper: Mapping[str, Any], param: torch.Tensor, storage: Storage) -> Layout:
    """The state that a parameter has under these hyperparameters."""
    meta, full = param.detach().to("meta"), algorithm.full_slots
    scalars: dict[str, float] = {STEP: 0.0}
    slots: dict[str, str] = {}
    tensors: State = {}
    for slot, initial in algorithm.reference.init_state(tuple(param.shape), **hyper).items():
        if slot in algorithm.scalar_slots:
            scalars[slot] = float(initial)
        else:
            slots[slot] = storage.slot_format(param, tuple(initial.shape), full=slot in full)
            tensors |= slot_tensors(slot, slots[slot], tuple(initial.shape), meta)
    return Layout(scalars, slots, tensors)


def home_scalars(states: Sequence[State], slot: str, initial: Sequence[float], device: torch.device) -> None:
    """Brings a slot of one number to its parameters' device, all that are not at home yet into one tensor."""
    wanted = 0, torch.float32 if slot == STEP else torch.float64, device
    found = [state.get(slot) for state in states]
    astray = [i for i, one in enumerate(found) if one is None or (one.ndim, one.dtype, one.device) != wanted]
    numbers = iter(read_scalars([one for i in astray if (one := found[i]) is not None]).tolist())
    values = [initial[i] if found[i] is None else next(numbers) for i in astray]
    place_scalars([states[i] for i in astray], slot, values, device)


def place_scalars(states: Sequence[State], slot: str, values: Sequence[float], device: torch.device) -> None:
    """Gives states new numbers on a device, views of one tensor: float32 for the step, as in torch, else float64."""
    home = upload(np.array(values, dtype=np.float32 if slot == STEP else np.float64), device)
    for state, number in zip(states, home.unbind(), strict=True):
        state[slot] = number


def read_scalars(numbers: Sequence[torch.Tensor]) -> np.ndarray[Any, Any]:
    """Tensors of one element as float64 on the host; waits once for each of their devices and formats."""
    result = np.zeros(len(numbers))
    kinds = [(number.device, number.dtype) for number in numbers]
    for kind in dict.fromkeys(kinds):
        places = [i for i, own in enumerate(kinds) if own == kind]
        own = [numbers[i] if numbers[i].ndim == 0 else numbers[i].reshape(()) for i in places]
        result[places] = torch.stack(own).detach().double().cpu().numpy()
    return result


def copied_scalars(
    algorithm: Algorithm, states: Sequence[Any], device: torch.device | None = None
) -> list[dict[str, Any]]:
    """The states with copies of the step and other single numbers, on another device if given, each kind at once."""
    refuse_capture("a copy of the state", "take it before or after the capture")
    copies = [dict(state) if isinstance(state, dict) else state for state in states]
    slots = {STEP, *algorithm.scalar_slots}
    kinds: dict[Any, list[tuple[State, str]]] = {}
    for state in copies:
        for slot in slots & state.keys() if isinstance(state, dict) else ():
            value = state[slot]
            if isinstance(value, torch.Tensor) and value.ndim == 0:
                kinds.setdefault((value.device, value.dtype), []).append((state, slot))
    for places in kinds.values():
        stacked = torch.stack([state[slot] for state, slot in places]).detach()
        for (state, slot), value in zip(places, stacked.to(device or stacked.device).unbind(), strict=True):
            state[slot] = value
    return copies


def apart(state: State) -> State:
    """The state with memory of its own for every view of a larger tensor, which pickle would save whole."""
    tensors = {slot: tensor for slot, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    parts = [slot for slot, tensor in tensors.items() if tensor.untyped_storage().nbytes() > tensor.nbytes]
    return {**state, **{slot: tensors[slot].clone() for slot in parts}}


def leave_batch(state: State) -> None:
    """Gives every slot that is a view of a larger tensor memory of its own, so that it keeps no more alive."""
    state.update(apart({slot: tensor for slot, tensor in state.items() if slot != STEP}))


def loaded_slot(label: str, value: Any, wanted: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """A copy of a checkpoint's array where and how this parameter keeps it; numbers are converted, codes never."""
    tensor = as_tensor(label, value)
    if tuple(tensor.shape) != tuple(wanted.shape):
        raise ValueError(f"state dict: {label!r} has shape {tuple(tensor.shape)}, expected {tuple(wanted.shape)}")
    if tensor.dtype != wanted.dtype and not wanted.is_floating_point():
        raise ValueError(f"state dict: {label!r} has dtype {tensor.dtype}, expected {wanted.dtype}")
    return torch.empty_like(wanted, device=param.device).copy_(tensor)


def as_tensor(label: str, value: Any) -> torch.Tensor:
    """A checkpoint's array, or a ValueError that names the key `label`."""
    if isinstance(value, torch.Tensor) and hasattr(value, "to_local"):
        raise ValueError(f"state dict: {label!r} is a DTensor; gather it with full_tensor()")
    try:
        return value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    except TypeError:
        raise ValueError(f"state dict: {label!r} must be an array of numbers, got {type(value).__name__}") from None


def check_steps(labels: Sequence[str], steps: Sequence[torch.Tensor]) -> None:
    """Refuses step counts of a checkpoint that are none, by a ValueError that names the key."""
    for label, step in zip(labels, steps, strict=True):
        if step.numel() != 1 or step.is_complex():
            raise ValueError(f"state dict: {label!r} must be one whole number from 0, got {step!r}")
    for label, number in zip(labels, read_scalars(steps).tolist(), strict=True):
        if not (number >= 0 and number.is_integer()):
            raise ValueError(f"state dict: {label!r} must be one whole number from 0, got {number!r}")
