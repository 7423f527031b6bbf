"""Refusals, before anything is touched: an error names the parameter, what was wrong and what would be right."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch

from .batch import Entry
from .dispatch import runs_kernels
from .layout import is_dense, same_layout
from .state import DTYPE_NAMES, PARAM_DTYPES, STEP, State, is_count
from .table import Algorithm

REMEDY = "optimizer.load_state_dict(optimizer.state_dict()) brings it there"


def check_name(name: object) -> None:
    """Refuses a parameter's name that is no string."""
    if not isinstance(name, str):
        raise TypeError(f"a parameter's name must be a string, got {name!r}")


def check_param(name: str, param: torch.Tensor) -> None:
    """Refuses a parameter that cannot be updated in place as a flat array of floats.

    Raises:
        TypeError: not a tensor, a negated view, or of a dtype or layout that has no codec.
        ValueError: on a device that has no kernels, or with gaps or overlaps in memory.
    """
    label = f"parameter {name!r}"
    if not isinstance(param, torch.Tensor):
        raise TypeError(f"{label}: must be a torch.Tensor, got {type(param).__name__}")
    if hasattr(param, "to_local"):
        raise TypeError(f"{label}: is a DTensor; step its local shard, param.to_local()")
    if param.layout != torch.strided:
        raise TypeError(f"{label}: layout is {param.layout}, must be torch.strided (dense)")
    if param.is_neg():
        raise TypeError(f"{label}: is a lazily negated view; materialize it with resolve_neg()")
    if param.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{label}: is on device {str(param.device)!r}, must be on 'cpu' or 'cuda'")
    allowed = PARAM_DTYPES if runs_kernels(param.device) else (*PARAM_DTYPES, torch.float64)
    if param.dtype not in allowed:
        names = ", ".join(DTYPE_NAMES[dtype] for dtype in allowed)
        where = "the kernels" if runs_kernels(param.device) else "CPU tensors"
        raise TypeError(f"{label}: dtype is {param.dtype}, {where} take {names}")
    if not is_dense(param):
        raise ValueError(
            f"{label}: its memory has gaps or overlaps (shape {tuple(param.shape)}, stride {param.stride()}); "
            "make it contiguous"
        )


def check_grad(name: str, param: torch.Tensor, grad: torch.Tensor, what: str = "gradient") -> None:
    """Refuses a gradient that does not belong to its (checked) parameter.

    Raises:
        TypeError: not a tensor, sparse, complex, a negated view, or of a dtype that has no codec.
        ValueError: of another shape or on another device than the parameter.
    """
    label = f"parameter {name!r}: {what}"
    if not isinstance(grad, torch.Tensor):
        raise TypeError(f"{label} must be a torch.Tensor, got {type(grad).__name__}")
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
    allowed = PARAM_DTYPES if runs_kernels(param.device) else (*PARAM_DTYPES, torch.float64)
    if grad.dtype not in allowed:
        names = ", ".join(DTYPE_NAMES[dtype] for dtype in allowed)
        raise TypeError(f"{label} has dtype {grad.dtype}, must be one of {names}")


def check_grad_scale(scale: Any) -> None:
    """Refuses a factor of the gradients that is no number.

    Raises:
        TypeError: neither a number nor a real tensor of one element.
    """
    if isinstance(scale, torch.Tensor):
        if scale.numel() == 1 and not scale.is_complex():
            return
        found = f"a tensor of {scale.dtype} and shape {tuple(scale.shape)}"
    else:
        if isinstance(scale, Real) and not isinstance(scale, bool):
            return
        found = repr(scale)
    raise TypeError(f"grad_scale must be a number or a real tensor of one element, got {found}")


def check_state(algorithm: Algorithm, entry: Entry, state: State, expected: State) -> None:
    """Refuses state that does not fit its parameter; `expected` holds meta tensors of what each slot should be.

    Raises:
        ValueError: a slot of another shape, dtype, device or memory order; names parameter and slot and both values.
    """
    for slot, found in state.items():
        label = f"parameter {entry.name!r}: state slot {slot!r}"
        if not isinstance(found, torch.Tensor):
            raise ValueError(f"{label} must be a torch.Tensor, got {type(found).__name__}")
        wanted = expected.get(slot)
        if wanted is None:  # of another variant, such as amsgrad's after it was switched off
            continue
        if tuple(found.shape) != tuple(wanted.shape):
            raise ValueError(f"{label} has shape {tuple(found.shape)}, the parameter needs {tuple(wanted.shape)}")
        if slot == STEP and not is_count(found):
            raise ValueError(f"{label} must be a whole number from 0, got {found.item()!r}")
        if not wanted.is_meta:
            continue
        if found.dtype != wanted.dtype:
            raise ValueError(f"{label} has dtype {found.dtype}, the storage asks for {wanted.dtype}; {REMEDY}")
        if found.device != entry.param.device:
            raise ValueError(
                f"{label} is on {str(found.device)!r}, the parameter on {str(entry.param.device)!r}; {REMEDY}"
            )
        if found.numel() and not same_layout(found, wanted):
            raise ValueError(
                f"{label} has stride {found.stride()}, the parameter's memory order needs {wanted.stride()}; {REMEDY}"
            )
