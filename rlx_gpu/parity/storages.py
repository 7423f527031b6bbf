"""Storages: formats of parameters, gradients and state, by the names that they have in `rlx-gpu kernels`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..compile_variants import STORAGES
from ..naming import chosen

_STOCHASTIC = "_stochastic"


@dataclass(frozen=True)
class Formats:
    """The number formats of one storage, each a key of `rlx_gpu.reference.formats.FORMATS`.

    Args:
        name: of the storage.
        param, grad, state: what is stored in it.
        rounding: of the parameters, "nearest" or "stochastic".
    """

    name: str
    param: str
    grad: str
    state: str
    rounding: str = "nearest"

    def __str__(self) -> str:
        return self.name


def find_storages(names: Iterable[str] = ()) -> list[Formats]:
    """The formats of the storages of these names; of all if there are none.

    Raises:
        ValueError: an unknown name.
    """
    return [_formats(name) for name in chosen(names, STORAGES, "dtype")]


def _formats(name: str) -> Formats:
    """A storage's codecs, the way of rounding apart."""
    param, grad, state = STORAGES[name]
    rounding = "stochastic" if param.endswith(_STOCHASTIC) else "nearest"
    return Formats(name, param.removesuffix(_STOCHASTIC), grad, state, rounding)
