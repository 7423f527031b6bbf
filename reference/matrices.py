"""Which parameters the matrix optimizers treat as matrices, and how those are seen."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

from .arrays import Shape
from .hyper import Hyper

NDIM_POLICY = Hyper(
    "ndim_policy",
    "fallback",
    kind="choice",
    choices=("fallback", "flatten", "batch"),
    doc="more than two dimensions: the fallback, first by rest as one matrix, or a batch of matrices in the last two",
)
MATRIX = Hyper(
    "matrix", True, kind="bool", doc="False: every parameter takes the fallback, as embeddings and heads should"
)


def matrix_shape(shape: Shape, *, ndim_policy: str = "fallback", matrix: bool = True) -> Shape | None:
    """The shape of a parameter as a matrix or a batch of matrices (the last two dimensions); None for the fallback."""
    if not matrix or len(shape) < 2 or (len(shape) > 2 and ndim_policy == "fallback"):
        return None
    return (shape[0], math.prod(shape[1:])) if ndim_policy == "flatten" else shape


def has_fallback(algorithm: ModuleType) -> bool:
    """Whether an algorithm treats matrices apart, so that a matrix can be told to take its fallback."""
    return any(hyper.name == "matrix" for hyper in algorithm.HYPERPARAMETERS)


def check_use_fallback(algorithm: ModuleType, value: Any) -> None:
    """Refuse a use_fallback that chooses no names, or of an algorithm without a fallback.

    Raises:
        TypeError: the algorithm has no fallback.
        ValueError: neither a collection of names nor a callable nor None.
    """
    if value is None:
        return
    if not has_fallback(algorithm):
        raise TypeError(f"{algorithm.NAME}: use_fallback is for optimizers of matrices, this has no fallback")
    if not callable(value) and (not isinstance(value, Collection) or isinstance(value, (str, Mapping))):
        raise ValueError(
            f"{algorithm.NAME}: use_fallback must be a collection of names, a callable or None, got {value!r}"
        )
