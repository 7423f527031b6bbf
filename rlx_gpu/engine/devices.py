"""Which driver steps the tensors of a device: the Triton kernels, or the NumPy reference and torch on the host."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def runs_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels step tensors of this device: CUDA always, the CPU if they are interpreted."""
    return device.type == "cuda" or (device.type == "cpu" and interpreted())


def interpreted() -> bool:
    """Whether Triton was told, before it was imported, to interpret kernels on the CPU."""
    try:
        from triton.runtime.interpreter import InterpretedFunction

        from ..kernels.elementwise import fused_step_kernel
    except ImportError:
        return False
    return isinstance(fused_step_kernel, InterpretedFunction)


def is_live(value: Any) -> bool:
    """Whether a learning rate lies in a tensor that only the device reads, step by step."""
    single = isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_floating_point()
    return single and runs_kernels(value.device)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Makes the device current for launches."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
