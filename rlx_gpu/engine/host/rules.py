"""The rules of `rlx_gpu.kernels` for the host: the same code, with this machine's arithmetic in the place of Triton's.

A rule is a function of blocks of numbers; here a block is one number, and the loops are around it (`loops`). Its
literals take the format that the rule computes in. The operations are those of IEEE 754, nothing is contracted and
nothing reordered, so that a rule without sums gives the bits that the kernels give. `tl.minimum` and `tl.maximum` are
left out, since machines differ in what they make of NaN and of signed zeros: rules compare and choose.
"""

from __future__ import annotations

import functools
import hashlib
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from numba import njit

from ...kernels.language import tl
from .build import named

OPERATIONS = {
    "abs": lambda x: abs(x),
    "div_rn": lambda x, y: x / y,
    "exp": lambda x: np.exp(x),
    "log": lambda x: np.log(x),
    "sqrt": lambda x: np.sqrt(x),
    "sqrt_rn": lambda x: np.sqrt(x),
    "where": lambda condition, x, y: x if condition else y,
}
LANGUAGE = ModuleType("tl")
for _name, _operation in OPERATIONS.items():
    setattr(LANGUAGE, _name, njit(inline="always", error_model="numpy")(named(_operation, f"{_name}_on_host")))


@functools.cache
def on_host(function: Any, double: bool) -> Any:
    """A JIT function as a Numba function, in float64 or float32; what it lacks on the host is named by an error."""
    code = function.fn.__code__
    literals = tuple(_literal(one, double) for one in code.co_consts)
    names = {name: _value(value, double) for name, value in _globals(function).items()}
    module = {"__name__": function.fn.__module__, **names}
    made = FunctionType(code.replace(co_consts=literals), module)
    kind = "float64" if double else "float32"
    return njit(error_model="numpy")(named(made, f"{function.fn.__name__}_{kind}_{fingerprint(function)[:16]}"))


def fingerprint(function: Any) -> str:
    """A hash of a JIT function's code and of all that it calls."""
    digest = hashlib.sha256(_described(function.fn.__code__).encode())
    for name, value in sorted(_globals(function).items()):
        if value is not tl:
            digest.update(f"{name}={fingerprint(value) if hasattr(value, 'fn') else _plain(value)!r}".encode())
    return digest.hexdigest()


def _globals(function: Any) -> dict[str, Any]:
    """The globals that a JIT function's code may name."""
    known = function.fn.__globals__
    return {name: known[name] for name in function.fn.__code__.co_names if name in known}


def _value(value: Any, double: bool) -> Any:
    """A global as the host has it."""
    if value is tl:
        return LANGUAGE
    return on_host(value, double) if hasattr(value, "fn") else _literal(_plain(value), double)


def _plain(value: Any) -> Any:
    """What a `tl.constexpr` holds; other values as they are."""
    return value.value if hasattr(value, "value") else value


def _literal(value: Any, double: bool) -> Any:
    """A number in the format that the rule computes in."""
    if isinstance(value, tuple):
        return tuple(_literal(one, double) for one in value)
    return np.float32(value) if isinstance(value, float) and not double else value


def _described(code: CodeType) -> str:
    return f"{code.co_code.hex()} {code.co_consts!r} {code.co_names!r} {code.co_varnames!r}"
