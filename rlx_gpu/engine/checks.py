"""Refusals, before anything is touched: an error names the parameter, what was wrong and what would be right."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch

from .batch import Entry
from .devices import TYPES, on_host
from .memory import is_dense, same_order
from .state import DTYPE_NAMES, PARAM_DTYPES, STEP, Layout, State

PLAIN = (torch.Tensor, torch.nn.Parameter)
REMEDY = "optimizer.load_state_dict(optimizer.state_dict()) brings it there"


def check_param(name: str, param: torch.Tensor) -> None:
    """Refuses a parameter that cannot be updated in place as a flat array of floats."""
    label = f"parameter {name!r}"
    if not isinstance(param, torch.Tensor):
        raise TypeError(f"{label}: must be a torch.Tensor, got {type(param).__name__}")
    refuse_wrapper(label, param)
    if param.layout != torch.strided:
        raise TypeError(f"{label}: layout is {param.layout}, must be torch.strided (dense)")
    if param.is_neg():
        raise TypeError(f"{label}: is a lazily negated view; materialize it with resolve_neg()")
    if param.device.type not in TYPES:
        raise ValueError(f"{label}: is on device {str(param.device)!r}, must be on 'cpu' or 'cuda'")
    if param.dtype not in dtypes_on(param.device):
        where = "CPU tensors" if on_host(param.device) else "the kernels"
        raise TypeError(f"{label}: dtype is {param.dtype}, {where} take {', '.join(dtypes_on(param.device).values())}")
    check_memory(label, param)
    if not is_dense(param):
        raise ValueError(
            f"{label}: its memory has gaps or overlaps (shape {tuple(param.shape)}, stride {param.stride()}); "
            "make it contiguous"
        )


def check_grad(name: str, param: torch.Tensor, grad: torch.Tensor, what: str = "gradient") -> None:
    """Refuses a gradient that does not belong to its (checked) parameter."""
    label = f"parameter {name!r}: {what}"
    if not isinstance(grad, torch.Tensor):
        raise TypeError(f"{label} must be a torch.Tensor, got {type(grad).__name__}")
    refuse_wrapper(label, grad)
    if grad.layout != torch.strided:
        raise TypeError(f"{label} is sparse ({grad.layout}); make it dense with grad.to_dense()")
    if grad.is_complex():
        raise TypeError(f"{label} is complex ({grad.dtype}); view it with torch.view_as_real")
    if grad.is_neg():
        raise TypeError(f"{label} is a lazily negated view; materialize it with grad.resolve_neg()")
    if tuple(grad.shape) != tuple(param.shape):
        raise ValueError(f"{label} has shape {tuple(grad.shape)}, the parameter has {tuple(param.shape)}")
    if grad.device != param.device:
        raise ValueError(f"{label} is on {str(grad.device)!r}, the parameter on {str(param.device)!r}")
    if grad.dtype not in dtypes_on(param.device):
        allowed = ", ".join(dtypes_on(param.device).values())
        raise TypeError(f"{label} has dtype {grad.dtype}, must be one of {allowed}")
    check_memory(label, grad)


def check_memory(label: str, tensor: torch.Tensor) -> None:
    """Refuses a tensor whose memory was freed, or is smaller than the tensor says."""
    if tensor.numel() and tensor.data_ptr() == 0:
        raise ValueError(f"{label} has no memory: its storage was freed, or it stands for zeros; clone it first")
    held = tensor.untyped_storage().nbytes()
    last = sum(stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    if tensor.numel() and (tensor.storage_offset() + last + 1) * tensor.element_size() > held:
        raise ValueError(f"{label} needs more memory than its storage has, {held} bytes: it was resized")


def dtypes_on(device: torch.device) -> dict[torch.dtype, str]:
    """The dtypes that can be stepped on a device, and their names."""
    return DTYPE_NAMES if on_host(device) else {dtype: DTYPE_NAMES[dtype] for dtype in PARAM_DTYPES}


def checked_scale(scale: Any, name: str = "grad_scale") -> float | torch.Tensor:
    """A factor of the gradients, or another number of a step; refuses all but a number or a real tensor of one."""
    if isinstance(scale, torch.Tensor):
        refuse_wrapper(name, scale)
        if scale.layout == torch.strided and scale.numel() == 1 and not scale.is_complex() and not scale.is_meta:
            return scale
        scale = f"a tensor of {scale.dtype}, {scale.layout}, shape {tuple(scale.shape)} on {str(scale.device)!r}"
    elif isinstance(scale, Real) and not isinstance(scale, bool):
        try:
            return float(scale)
        except OverflowError:
            raise ValueError(f"{name} must be a number that a float holds, got one beyond") from None
    found = scale if isinstance(scale, str) else repr(scale)
    raise TypeError(f"{name} must be a number or a real tensor of one element, got {found}")


def refuse_wrapper(label: str, tensor: torch.Tensor) -> None:
    """Refuses a tensor that has no memory of its own to be read: a DTensor, or another wrapper of tensors."""
    if type(tensor) in PLAIN and not tensor.is_nested:
        return
    if hasattr(tensor, "to_local"):
        raise TypeError(
            f"{label} is a DTensor, which is not supported: train unsharded, or under DistributedDataParallel "
            "(stepping local shards would be another optimizer wherever norms or whole matrices count)"
        )
    if tensor.is_nested or type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise TypeError(f"{label} is a {type(tensor).__name__}, a wrapper of tensors without memory of its own")


def check_state(entry: Entry, state: State, wanted: Layout) -> None:
    """Refuses state that does not fit its parameter, by a ValueError that names parameter, slot and both values."""
    if STEP not in state:
        raise ValueError(f"parameter {entry.name!r}: state slot {STEP!r} is missing; found {sorted(state)}")
    known = wanted.scalars.keys() | wanted.tensors.keys()  # others are the user's own, or of another variant
    for slot, found in ((slot, state[slot]) for slot in state if slot in known):
        label = f"parameter {entry.name!r}: state slot {slot!r}"
        if not isinstance(found, torch.Tensor):
            raise ValueError(f"{label} must be a torch.Tensor, got {type(found).__name__}")
        refuse_wrapper(label, found)
        like = wanted.tensors.get(slot)
        shape = () if like is None else tuple(like.shape)
        if tuple(found.shape) != shape:
            raise ValueError(f"{label} has shape {tuple(found.shape)}, the parameter needs {shape}")
        if slot == STEP and found.device.type == "cpu":  # elsewhere this would wait
            count = found.item()
            if found.is_complex() or not (count >= 0 and float(count).is_integer()):
                raise ValueError(f"{label} must be a whole number from 0, got {count!r}")
        if like is None:
            continue
        if found.dtype != like.dtype:
            raise ValueError(f"{label} has dtype {found.dtype}, the storage asks for {like.dtype}; {REMEDY}")
        home = entry.param.device
        if found.device != home:
            raise ValueError(f"{label} is on {str(found.device)!r}, the parameter on {str(home)!r}; {REMEDY}")
        if found.numel() and not same_order(found, like):
            raise ValueError(
                f"{label} has stride {found.stride()}, the parameter's memory order needs {like.stride()}; {REMEDY}"
            )
