"""Storage formats in float64: rounding to nearest, stochastic rounding, and the random bits behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import Array

# Bits of the significand (the hidden one included), exponent of the smallest and of the largest normal number.
FORMATS = {"float32": (24, -126, 127), "float16": (11, -14, 15), "bfloat16": (8, -126, 127)}


def round_to(x: ArrayLike, dtype: str) -> Array:
    """The nearest values of a format, ties to even, straight from float64 (through float32 would round twice).

    Args:
        x: float64, any shape.
        dtype: "float64" (x itself), "float32", "float16" or "bfloat16".

    Returns:
        A float64 array of values of that format. What rounds beyond its largest becomes infinity; NaN stays.

    Raises:
        ValueError: another dtype.
    """
    values = np.asarray(x, np.float64)
    if dtype == "float64":
        return values
    if dtype not in FORMATS:
        raise ValueError(f"dtype must be one of float64, {', '.join(FORMATS)}, got {dtype!r}")
    precision, smallest, largest = FORMATS[dtype]
    with np.errstate(over="ignore", invalid="ignore"):
        exponent = np.maximum(np.frexp(values)[1] - 1, smallest)  # subnormals share the smallest normal's spacing
        spacing = np.ldexp(1.0, exponent - (precision - 1))
        rounded = np.rint(values / spacing) * spacing
    return np.where(np.abs(rounded) >= 2.0 ** (largest + 1), np.copysign(np.inf, values), rounded)


def philox(seed: int, c0: Any, c1: Any, c2: Any, c3: Any, rounds: int = 10) -> tuple[NDArray[np.uint32], ...]:
    """Philox-4x32: four random 32-bit words for each 128-bit counter, the same as `triton.language.philox`.

    Args:
        seed: 64 bits, the key, low word first.
        c0, c1, c2, c3: words of the counter, low first; integers or integer arrays that broadcast, taken modulo 2³².
        rounds: 7 already pass BigCrush, 10 are usual.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    low = np.uint64(0xFFFFFFFF)
    words = np.broadcast_arrays(*(np.asarray(word, np.int64).astype(np.uint64) & low for word in (c0, c1, c2, c3)))
    word0, word1, word2, word3 = words
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(rounds):
        product0, product2 = word0 * np.uint64(0xD2511F53), word2 * np.uint64(0xCD9E8D57)
        word0, word1 = (product2 >> np.uint64(32)) ^ word1 ^ np.uint64(key0), product2 & low
        word2, word3 = (product0 >> np.uint64(32)) ^ word3 ^ np.uint64(key1), product0 & low
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return tuple(word.astype(np.uint32) for word in (word0, word1, word2, word3))


def random_bits(seed: int, step: int, index: ArrayLike) -> NDArray[np.uint32]:
    """The 16 random bits that `stochastic_bfloat16` adds to each element."""
    position = np.asarray(index, np.int64)
    group = position >> 3
    words = np.stack(philox(seed, group, group >> 32, step, 0, rounds=7))
    word: NDArray[np.uint32] = np.take_along_axis(words, (position >> 1 & 3)[np.newaxis], axis=0)[0]
    return word >> (16 * (position & 1)).astype(np.uint32) & np.uint32(0xFFFF)


def stochastic_bfloat16(x: ArrayLike, seed: int, step: int, index: ArrayLike) -> Array:
    """Each value rounded to one of its two bfloat16 neighbours, the nearer the likelier, so that the mean is kept.

        w = philox₇(seed; ⌊index/8⌋ mod 2³², ⌊index/2³⁵⌋, step, 0), four words for the eight elements of a group
        r = 16 bits of w, counted from the lowest, at 16·(index mod 8)
        y = (bits of float32(x) + r) with the low 16 bits cleared

    The neighbour above the largest bfloat16 is infinity: only values beyond that largest can reach it. Values that
    bfloat16 holds stay as they are, NaN and infinity among them.

    Args:
        x: float64, any shape; first rounded to the nearest float32.
        seed: key of the random bits.
        step: iteration, from 1.
        index: int64, x's shape: position of each element among all parameters, so that no split of them matters.

    Returns:
        A float64 array of bfloat16 values.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        single = np.asarray(x, np.float64).astype(np.float32)
    finite = np.isfinite(single)
    bits = np.where(finite, single, 0).astype(np.float32).view(np.uint32)
    rounded = ((bits + random_bits(seed, step, index)) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(finite, rounded, single).astype(np.float64)
