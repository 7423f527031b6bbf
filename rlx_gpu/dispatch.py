"""Which path the tensors of a device take: the Triton kernels, or the NumPy reference and torch."""

from __future__ import annotations

import torch


def runs_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels step tensors of this device: CUDA always, the CPU if they are interpreted."""
    return device.type == "cuda" or (device.type == "cpu" and interpreted())


def interpreted() -> bool:
    """Whether Triton was told, before it was imported, to interpret kernels on the CPU."""
    try:
        from triton.runtime.interpreter import InterpretedFunction

        from .kernels.elementwise import fused_step_kernel
    except ImportError:
        return False
    return isinstance(fused_step_kernel, InterpretedFunction)
