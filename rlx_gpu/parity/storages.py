"""Storages: formats of parameters, gradients and state, by the names that they have in `rlx-gpu kernels`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..kernels.formats import STORAGES
from ..naming import chosen


@dataclass(frozen=True)
class Formats:
    """What one storage keeps parameters, gradients and state in, each a key of `rlx_gpu.reference.formats.FORMATS`."""

    name: str
    param: str
    grad: str
    state: str
    rounding: str = "nearest"  # of the parameters, or "stochastic"

    def __str__(self) -> str:
        return self.name


def find_storages(names: Iterable[str] = ()) -> list[Formats]:
    """The formats of the storages of these names; of all if there are none."""
    found = []
    for name in chosen(names, STORAGES, "dtype"):
        param, grad, state = STORAGES[name]
        rounding = "stochastic" if param.endswith("_stochastic") else "nearest"
        found.append(Formats(name, param.removesuffix("_stochastic"), grad, state, rounding))
    return found
