"""Where the matrices lie in a parameter's memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch


@dataclass(frozen=True)
class Block:
    """One matrix inside a parameter: first element, rows and columns (elements of a vector), and whether memory holds
    it column by column.
    """

    offset: int
    shape: tuple[int, ...]
    transposed: bool

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


def blocks(name: str, param: torch.Tensor, hyper: Mapping[str, Any]) -> list[Block]:
    """The matrices of a dense parameter: itself, a stack, or blocks of rows; a ValueError if memory mixes them."""
    rows, cols = param.shape[-2:]
    if param.ndim > 2 and hyper["ndim_policy"] == "flatten":
        rows, cols = param.shape[0], math.prod(param.shape[1:])
    split: tuple[int, ...] = hyper.get("split_sizes") or ()
    heights = split if sum(split) == rows else (rows,)
    transposed = not param.is_contiguous()
    if transposed and (param.ndim > 2 or len(heights) > 1):
        what = "split_sizes" if len(heights) > 1 else f"ndim_policy={hyper['ndim_policy']!r}"
        raise ValueError(
            f"parameter {name!r}: {what} needs contiguous memory, got shape {tuple(param.shape)} with stride "
            f"{param.stride()}; make it contiguous"
        )
    tops = [0, *accumulate(heights[:-1])]
    return [
        Block(first + top * cols, (height, cols), transposed)
        for first in range(0, param.numel(), rows * cols)
        for top, height in zip(tops, heights, strict=True)
    ]
