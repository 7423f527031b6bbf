"""Parameters to step: their shapes and memory layouts, and the numbers in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..reference.formats import round_to

# Tiny, on both sides of a block's edge, tall, wide (one tile of 64 x 128 in full and a row below it), in another memory
# order, off the alignment of a vector access, and empty.
DEFAULT_SHAPES = "scalar,1,127,1024,1025,35x6,65x128,3x5x7,16x9:transposed,300:unaligned,9x136:unaligned,0x3"
LAYOUTS = ("contiguous", "transposed", "unaligned")
_TOKEN = re.compile(rf"(scalar|\d+(?:x\d+)*)(?::({'|'.join(LAYOUTS)}))?")
GRAD_SIZES = (1.0, 0.25, 2.0, 0.5, 0.125)  # by step, so that second moments fall and rise
ZERO_EVERY = 19  # one gradient in so many is 0 in every step; divides no row, so that no column is 0 throughout
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Case:
    """One parameter, and the memory layouts (LAYOUTS) of itself and of its gradients."""

    name: str
    shape: tuple[int, ...]
    layout: str = LAYOUTS[0]
    grad_layout: str = LAYOUTS[0]


def parse_shapes(text: str) -> tuple[Case, ...]:
    """The parameters of a list such as "scalar,127,33x128,16x9:transposed,300:unaligned", named as they stand there.

    Gradients are contiguous, those of unaligned parameters unaligned.

    Raises:
        ValueError: not of this form, a shape named twice, or a transposed one that is no matrix.
    """
    cases = []
    for token in (part.strip() for part in text.split(",")):
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise ValueError(f"shape {token!r} must look like 127, 33x128, scalar, 33x128:transposed or 127:unaligned")
        sizes, layout = match[1], match[2] or LAYOUTS[0]
        shape = () if sizes == "scalar" else tuple(map(int, sizes.split("x")))
        if layout == "transposed" and len(shape) != 2:
            raise ValueError(f"shape {token!r}: only a matrix can be transposed")
        cases.append(Case(token, shape, layout, layout if layout == "unaligned" else LAYOUTS[0]))
    if len({case.name for case in cases}) < len(cases):
        raise ValueError(f"shapes must differ from each other, got {text!r}")
    return tuple(cases)


def normal(case: Case, rng: np.random.Generator, dtype: str, size: float = 1.0, mean: float = 0.0) -> Array:
    """Normal numbers of the case's shape that the dtype and float32 hold exactly, in float64."""
    values = rng.normal(size=case.shape) * size + mean
    return round_to(round_to(values, "float32"), dtype)


def gradient(case: Case, rng: np.random.Generator, dtype: str, step: int) -> Array:
    """As `normal`, some of them 0, of a size that changes from step to step."""
    values = normal(case, rng, dtype, GRAD_SIZES[step % len(GRAD_SIZES)])
    values.flat[ZERO_EVERY - 1 :: ZERO_EVERY] = 0.0
    return values


def tensor_of(values: Array, dtype: str, layout: str, device: torch.device) -> torch.Tensor:
    """The values, which the dtype holds exactly, as a tensor of this memory layout."""
    source = torch.from_numpy(values).to(device, getattr(torch, dtype))
    if layout == "transposed":
        return source.t().contiguous().t()
    if layout == "unaligned":
        return torch.cat([source.new_full((1,), float("nan")), source.flatten()])[1:].view(source.shape)
    return source


def places(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each element of a dense tensor, how many elements lie before it in memory."""
    place = torch.arange(tensor.numel()).as_strided(tensor.shape, tensor.stride())
    array: np.ndarray[Any, np.dtype[np.int64]] = place.numpy()
    return array
