"""Which driver steps the tensors of a device: Triton, or the host's own forms of the kernels."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

TYPES = ("cpu", "cuda")
_host_first = False


def on_host(device: torch.device) -> bool:
    """Whether `rlx_gpu.engine.host` steps tensors of this device: those on the CPU, unless Triton interprets there."""
    return device.type == "cpu" and (_host_first or not interpreted())


@contextmanager
def stepped_on_host() -> Iterator[None]:
    """While it lasts, the host's driver steps tensors on the CPU even where Triton interprets, to compare the two.

    An optimizer must have been made, and be stepped, on one side of it only.
    """
    global _host_first
    before, _host_first = _host_first, True
    try:
        yield
    finally:
        _host_first = before


@functools.cache
def interpreted() -> bool:
    """Whether Triton was told, before it was imported, to interpret kernels on the CPU."""
    try:
        from triton.runtime.interpreter import InterpretedFunction

        from ..kernels.elementwise import fused_step_kernel
    except ImportError:
        return False
    return isinstance(fused_step_kernel, InterpretedFunction)


def number_dtype(device: torch.device) -> torch.dtype:
    """The format of rows, sums and other numbers of whole tensors, as the device's driver reads them."""
    return torch.float64 if on_host(device) else torch.float32


def is_live(value: Any) -> bool:
    """Whether a learning rate lies in a tensor that only the device reads, step by step."""
    single = isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_floating_point()
    return single and value.device.type in TYPES and not on_host(value.device)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Makes the device current for launches."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
