"""Triton, or where it is not published or broken, as much of it as it takes to read the kernels and launch none.

Rules are functions of numbers, which `rlx_gpu.engine.host` compiles for the CPU; they must be readable where Triton
cannot be had. Every file of kernels takes `triton` and `tl` from here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:

    class UncompiledFunction:
        """A JIT function that nothing here can launch: `fn` is its code."""

        def __init__(self, fn: Any) -> None:
            self.fn, self.__name__, self.__doc__ = fn, fn.__name__, fn.__doc__

        def __getitem__(self, grid: Any) -> Any:
            raise ImportError(f"{self.__name__} is a Triton kernel; tensors on a GPU need Triton: pip install triton")

    def jit(fn: Any = None, **options: Any) -> Any:
        """The decorator, with options or without."""
        return UncompiledFunction if fn is None else UncompiledFunction(fn)

    triton = SimpleNamespace(jit=jit)
    tl = SimpleNamespace(constexpr=lambda value: SimpleNamespace(value=value))

__all__ = ["tl", "triton"]
