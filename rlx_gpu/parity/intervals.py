"""Which numbers a stored number may stand for: the interval that its format rounds to it.

A kernel is not at fault for the rounding of the format it stores into. So the distance that counts is not the one from
the stored number to the reference's, but the one from that interval.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference.formats import FORMATS, random_bits
from .cases import Array

Index = np.ndarray[Any, np.dtype[np.int64]]
Interval = tuple[Array, Array]  # of magnitudes: the lower and the upper ends


def distance(found: Array, wanted: Array, interval: Interval) -> Array:
    """How far each wanted number lies outside the interval of the one found; NaN where either is NaN."""
    low, high = interval
    towards = np.where(np.signbit(found), -wanted, wanted)
    result: Array = np.maximum(np.maximum(low - towards, towards - high), 0.0)
    return result


def nearest(found: Array, dtype: str) -> Interval:
    """What rounds to nearest to each number."""
    magnitude = np.abs(found)
    if dtype == "float64":
        return magnitude, magnitude
    below = np.nextafter(magnitude, 0.0)  # below a power of two the spacing is half as wide
    return magnitude - _spacing(below, dtype) / 2, magnitude + _spacing(magnitude, dtype) / 2


def stochastic(found: Array, seed: int, step: int, index: Index) -> Interval:
    """What `stochastic_bfloat16` rounds to each number, given its random bits: float32 numbers, themselves rounded.

    The bits of a number are added to 16 random ones r, and the low 16 cleared: y comes of y − r to y − r + 2¹⁶ − 1.
    """
    stored = np.abs(found).astype(np.float32).view(np.uint32).astype(np.int64)
    first = stored - random_bits(seed, step, index).astype(np.int64)
    ends = (np.maximum(first, 0), first + 0xFFFF)
    least, most = (bits.astype(np.uint32).view(np.float32).astype(np.float64) for bits in ends)
    return nearest(least, "float32")[0], nearest(most, "float32")[1]


def _spacing(magnitude: Array, dtype: str) -> Array:
    """The distance from each magnitude to the format's next one."""
    precision, smallest, _ = FORMATS[dtype]
    exponent = np.where(magnitude > 0, np.maximum(np.frexp(magnitude)[1] - 1, smallest), smallest)  # frexp(0) is 0
    spacing: Array = np.ldexp(1.0, exponent - (precision - 1))
    return spacing
