"""Fused GPU optimizers: every algorithm in every storage format, in one launch, checked against a NumPy reference.

`rlx_gpu.AdamW(lr=3e-4)` is the trait, keyed by parameter name, for any trainer; `rlx_gpu.optim.AdamW(params, lr=3e-4)`
drops in for `torch.optim`; `rlx_gpu.reference.AdamW(lr=3e-4)` is the trait in NumPy and float64, without `device` and
`grad_scale`. Importing this package imports neither torch nor Triton; using it does.
"""

from __future__ import annotations

import importlib
from typing import Any

from .table import TABLE

__version__ = "0.1.0"
_SUBMODULES = ("hessian", "optim", "reference")
_FUNCTIONS = {
    "global_grad_clip_scale": "norms",
    "l2_norm": "norms",
    "newton_schulz": "matrix.newton_schulz",
    "split_parameters": "split",
    "state_bytes": "optim",
}
__all__ = ["TABLE", "__version__", *_SUBMODULES, *_FUNCTIONS, *TABLE]


def __getattr__(name: str) -> Any:
    if name in TABLE:
        return importlib.import_module(".optimizer", __name__).make_class(name)
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f".{_FUNCTIONS[name]}", __name__), name)
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
