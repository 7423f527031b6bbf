"""Where the matrices lie in a parameter's memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Block:
    """One matrix inside a parameter.

    Args:
        offset: of its first element, from the parameter's.
        shape: rows and columns; of a parameter that is one vector, its elements.
        transposed: whether memory holds it column by column.
    """

    offset: int
    shape: tuple[int, ...]
    transposed: bool

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


def blocks(name: str, param: torch.Tensor, hyper: Mapping[str, Any]) -> list[Block]:
    """The matrices of a parameter: itself, a stack of them, or blocks of rows.

    Args:
        name: of the parameter, for errors.
        param: at least two dimensions, dense.
        hyper: `ndim_policy` and, where the optimizer has it, `split_sizes`.

    Raises:
        ValueError: the memory order does not let the matrices be told apart.
    """
    split: tuple[int, ...] = hyper.get("split_sizes") or ()
    splits = param.ndim == 2 and sum(split) == param.shape[0]
    transposed = not param.is_contiguous()
    if transposed and (param.ndim > 2 or splits):
        what = "split_sizes" if splits else f"ndim_policy={hyper['ndim_policy']!r}"
        raise ValueError(
            f"parameter {name!r}: {what} needs contiguous memory, got shape {tuple(param.shape)} with stride "
            f"{param.stride()}; make it contiguous"
        )
    if param.ndim == 2:
        rows, cols = param.shape
        heights = split if splits else (rows,)
        starts = [sum(heights[:i]) for i in range(len(heights))]
        return [Block(start * cols, (height, cols), transposed) for start, height in zip(starts, heights, strict=True)]
    if hyper["ndim_policy"] == "flatten":
        return [Block(0, (param.shape[0], math.prod(param.shape[1:])), False)]
    rows, cols = param.shape[-2:]
    return [Block(i * rows * cols, (rows, cols), False) for i in range(math.prod(param.shape[:-2]))]
