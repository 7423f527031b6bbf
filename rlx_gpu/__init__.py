"""Fused GPU optimizers: every algorithm in every storage format, in one launch, checked against a NumPy reference.

`rlx_gpu.AdamW(lr=3e-4)` is the trait, keyed by parameter name, for any trainer; `rlx_gpu.optim.AdamW(params, lr=3e-4)`
drops in for `torch.optim`; `rlx_gpu.reference.AdamW(lr=3e-4)` is the trait in NumPy and float64, without `device` and
`grad_scale`. Importing this package imports nothing; using it imports NumPy, torch, Triton and Numba as needed.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
_SUBMODULES = ("hessian", "optim", "reference")
_HOMES = {
    "TABLE": "table",
    "global_grad_clip_scale": "norms",
    "l2_norm": "norms",
    "newton_schulz": "matrix.newton_schulz",
    "split_parameters": "split",
    "state_bytes": "optim",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    if name == "__all__":
        return ["__version__", *_SUBMODULES, *_HOMES, *__getattr__("TABLE")]
    # An optimizer's name has capitals; other modules are asked for by `from rlx_gpu import x`, and must not need NumPy.
    if not name.islower() and name in __getattr__("TABLE"):
        return importlib.import_module(".trait", __name__).make_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
