"""Norms of tensors on any device, and gradient clipping by them; nothing waits for a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from . import reference
from .engine.capture import refuse_capture
from .engine.checks import dtypes_on, refuse_wrapper
from .engine.devices import TYPES
from .engine.memory import is_dense
from .engine.norms import squared_norm
from .reference.norms import MAX_NORM


def l2_norm(x: Any) -> Any:
    """‖x‖ = √(Σ x²) over the finite entries.

    Args:
        x: a tensor or anything with `__dlpack__`, of any float dtype, or a NumPy array.

    Returns:
        A 0-d float32 tensor on x's device, summed in a fixed order; a float for a NumPy array. The squares are formed
        in float32, so entries beyond 1e19 overflow to infinity.

    Raises:
        TypeError: none of these, a sparse tensor, or one of no float dtype.
    """
    if isinstance(x, np.ndarray):
        return reference.l2_norm(x)
    return _squares([_tensor(x)]).sqrt()


def global_grad_clip_scale(grads: Iterable[Any], max_norm: float) -> Any:
    """The factor that brings the norm of all gradients together down to max_norm: min(1, max_norm/‖all grads‖).

    Pass it as `grad_scale` to a step: the gradients are then clipped inside the update, at no cost in memory traffic.

    Args:
        grads: as in `l2_norm`, but no parameters; entries that are not finite are left out of the norm. None entries
            are passed over.
        max_norm: in [0, inf].

    Returns:
        A 0-d float32 tensor on the first gradient's device; a float for NumPy arrays and for no gradients at all.

    Raises:
        TypeError: as in `l2_norm`, or a parameter.
        ValueError: max_norm is no number in that range.
    """
    max_norm = MAX_NORM.check(max_norm)
    present = [grad for grad in grads if grad is not None]
    if any(type(grad) is not torch.Tensor and isinstance(grad, torch.nn.Parameter) for grad in present):
        raise TypeError("expected gradients, got parameters; pass (p.grad for p in parameters)")
    if all(isinstance(grad, np.ndarray) for grad in present):
        return reference.global_grad_clip_scale(present, max_norm)
    norm = _squares([_tensor(grad) for grad in present]).sqrt()
    return torch.where(norm > max_norm, max_norm / norm, torch.ones_like(norm))


def _tensor(x: Any) -> torch.Tensor:
    """A dense tensor of the array's memory, or of a copy where that has gaps."""
    if not (isinstance(x, torch.Tensor) or hasattr(x, "__dlpack__")):
        raise TypeError(f"expected a torch tensor, a NumPy array or an object with __dlpack__, got {type(x).__name__}")
    if isinstance(x, torch.Tensor):
        refuse_wrapper("a tensor to take the norm of", x)
    tensor = x.detach() if isinstance(x, torch.Tensor) else from_dlpack(x)
    if tensor.layout != torch.strided or not tensor.is_floating_point():
        raise TypeError(f"expected a dense float tensor, got {tensor.layout} of {tensor.dtype}")
    return tensor if is_dense(tensor) else tensor.contiguous()


def _squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of squares of finite entries, float32 and 0-d on the first tensor's device."""
    refuse_capture("the norm of given tensors", "use an optimizer's max_grad_norm=, or torch.nn.utils.clip_grad_norm_")
    device = tensors[0].device
    total = torch.zeros((), dtype=torch.float32, device=device)
    with_codec = []
    for tensor in tensors:
        if tensor.device.type in TYPES and tensor.dtype in dtypes_on(tensor.device):
            with_codec.append(tensor)
        else:
            total += tensor.double().nan_to_num(0.0, 0.0, 0.0).square().sum().to(device, torch.float32)
    if with_codec:
        total += squared_norm(with_codec, device)[0]
    return total
