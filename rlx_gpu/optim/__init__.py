"""The torch face: `rlx_gpu.optim.AdamW(model.parameters(), lr=3e-4)` drops in for `torch.optim.AdamW`."""

from __future__ import annotations

from ..table import TABLE
from .classes import make_class
from .optimizer import Optimizer
from .states import state_bytes

__all__ = [*TABLE, "Optimizer", "state_bytes"]


def __getattr__(name: str) -> type[Optimizer]:
    if name in TABLE:
        return make_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
