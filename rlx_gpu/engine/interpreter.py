"""Triton's interpreter, made to compute what a GPU computes, and to do it faster.

By itself it cuts off the bits that bfloat16 lacks where a GPU rounds to nearest even, loses bfloat16's subnormals on
the way back, and takes the bits of bfloat16 matrices for the numbers that it multiplies. That of Triton 3.6 counts
loops by arrays of one element, which NumPy no longer takes for integers from 2.4 on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter


@functools.cache
def repair() -> None:
    """Repairs the interpreter of this process, once; compiled kernels are not affected."""
    convert = interpreter.InterpreterBuilder.cast_impl
    multiply = interpreter.InterpreterBuilder.create_dot

    def convert_to_nearest(builder: Any, source: Any, wanted: Any) -> Any:
        """Converts between number formats, float32 and bfloat16 as every GPU does it."""
        formats = source.dtype.scalar, wanted.scalar
        if formats == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.uint16).numpy()
            return interpreter.TensorHandle(rounded.reshape(source.data.shape), tl.bfloat16)
        if formats == (tl.bfloat16, tl.float32):
            widened = np.ascontiguousarray(source.data).astype(np.uint32) << 16
            return interpreter.TensorHandle(widened.view(np.float32).reshape(source.data.shape), tl.float32)
        return convert(builder, source, wanted)

    def multiply_numbers(builder: Any, a: Any, b: Any, *others: Any) -> Any:
        """Multiplies bfloat16 matrices as the float32 numbers that they hold."""
        wide = [convert_to_nearest(builder, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return multiply(builder, *wide, *others)

    interpreter.InterpreterBuilder.cast_impl = convert_to_nearest
    interpreter.InterpreterBuilder.create_dot = multiply_numbers
    interpreter.InterpretedFunction.__call__ = _call_device_function
    if triton.__version__.startswith("3.6."):
        interpreter._patch_lang_tensor = functools.partial(_make_scalars_integers, interpreter._patch_lang_tensor)


def _make_scalars_integers(patch: Callable[..., None], tensor: Any, scope: Any) -> None:
    """Lets scalars be the ends of a range, as Triton 3.7 does: 3.6 makes integers of arrays, NumPy 2.4 refuses them."""
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda scalar: int(scalar.handle.data.item()))


def _call_device_function(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls a JIT function from a JIT function; the enclosing launch has patched `triton.language` (slowly)."""
    _patch_library(function.fn)
    return function.rewrite()(*args, **kwargs)


@functools.cache
def _patch_library(function: Callable[..., Any]) -> None:
    """Makes `triton.language.core` run on NumPy, for the functions of Triton's own library that look into it."""
    if any(value is tl.core for value in function.__globals__.values()):
        interpreter._patch_lang(function)
