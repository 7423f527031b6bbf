"""Every optimizer in NumPy and float64, written from its paper: what all other implementations are held to.

`rlx_gpu.reference.AdamW(lr=3e-4)` is what a trainer uses, `rlx_gpu.reference.adamw.update` its mathematics.
A module of this package that has a `NAME` is an optimizer; there is no list to add it to.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType

from .newton_schulz import newton_schulz
from .norms import global_grad_clip_scale, has_nonfinite, l2_norm
from .trait import Optimizer, make_class

__all__ = ["Optimizer", "algorithms", "global_grad_clip_scale", "has_nonfinite", "l2_norm", "newton_schulz"]


@functools.cache
def algorithms() -> dict[str, ModuleType]:
    """The optimizers' modules by name."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {module.NAME: module for module in modules if hasattr(module, "NAME")}


def __getattr__(name: str) -> type[Optimizer]:
    if name.islower() or name.startswith("_") or name not in algorithms():  # modules, asked for by `from . import x`
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made = make_class(algorithms()[name], __name__)
    return made


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *algorithms()})
