"""What can be held to the reference here: Triton's kernels on a GPU or interpreted, and their forms on the CPU."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from ..engine.devices import interpreted, stepped_on_host
from ..naming import chosen

DEVICES = {
    "cuda": "Triton's kernels on a GPU",
    "interpreted": "Triton's kernels, interpreted on the CPU, which rounds as a GPU does",
    "cpu": "the host's driver, which steps tensors on the CPU",
}


def find_devices(names: Sequence[str]) -> list[str]:
    """The devices of these names; if there are none, the CPU and the GPU, in whose absence kernels are interpreted.

    Raises:
        ValueError: an unknown name, or two that one process cannot have.
        RuntimeError: a device that is not here.
    """
    has_gpu, has_triton = torch.cuda.is_available(), importlib.util.find_spec("triton") is not None
    if names:
        found = list(chosen(names, DEVICES, "device"))
    else:
        found = [*(["cuda" if has_gpu else "interpreted"] if has_triton else []), "cpu"]
    if {"cuda", "interpreted"} <= {*found}:
        raise ValueError("a process either compiles kernels or interprets them: ask for cuda or for interpreted")
    if "cuda" in found and not has_gpu:
        raise RuntimeError("there is no GPU here; --device interpreted and --device cpu need none")
    if {"cuda", "interpreted"} & {*found} and not has_triton:
        raise RuntimeError("Triton is not installed, so there are no kernels to check: pip install triton")
    if "interpreted" in found:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which is the next line at the earliest
        if not interpreted():
            raise RuntimeError("Triton was imported before it could be told to interpret; set TRITON_INTERPRET=1")
        from ..engine.interpreter import repair

        repair()
    return found


def torch_device(name: str) -> torch.device:
    """Where the tensors are."""
    return torch.device("cuda" if name == "cuda" else "cpu")


def driver(name: str) -> AbstractContextManager[None]:
    """While it lasts, what steps the device's tensors is what its name says."""
    return stepped_on_host() if name == "cpu" else nullcontext()


def describe(name: str) -> str:
    """The device in words."""
    if name == "cuda":
        return f"{torch.cuda.get_device_name()}, kernels compiled"
    processor = platform.processor() or platform.machine()
    if name == "interpreted":
        return f"{processor}, kernels interpreted"
    from ..engine.host import thread_count

    return f"{processor}, rules compiled by Numba {sys.modules['numba'].__version__}, {thread_count()} threads"
