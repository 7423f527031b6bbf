"""Numbers of 16 bits and the float32 that they stand for, one at a time: for loops over them."""

from __future__ import annotations

from typing import Any

from numba import njit

from .native import bits_of, float32, number_of, uint16, uint32


@njit
def is_nan(bits: Any) -> Any:
    """Whether these are the bits of a NaN in float32."""
    return (bits & 0x7FFFFFFF) > 0x7F800000


@njit
def from_bfloat16(stored: Any) -> Any:
    """Exact."""
    return number_of(uint32(uint32(stored) << 16))


@njit
def to_bfloat16(number: Any) -> Any:
    """To nearest, ties to even."""
    bits = bits_of(number)
    rounded = uint32(bits + uint32(0x7FFF) + uint32((bits >> 16) & 1)) >> 16
    return uint16(0x7FC0 if is_nan(bits) else rounded)


@njit
def from_float16(stored: Any) -> Any:
    """Exact, by normal numbers alone: a thread may be set to take others for 0."""
    half = uint32(stored)
    magnitude = uint32((half & 0x7FFF) << 13)
    normal = uint32(magnitude + uint32(112 << 23))  # the exponent's bias is another
    subnormal = bits_of(number_of(uint32(magnitude + uint32(113 << 23))) - float32(2.0**-14))
    shifted = subnormal if magnitude < uint32(0x400 << 13) else normal
    special = uint32(magnitude | 0x7F800000)
    bits = special if magnitude >= uint32(0x7C00 << 13) else shifted
    return number_of(uint32(bits | ((half & 0x8000) << 16)))


@njit
def to_float16(number: Any) -> Any:
    """To nearest, ties to even; beyond the largest float16, infinity."""
    bits = bits_of(number)
    magnitude = uint32(bits & 0x7FFFFFFF)
    normal = uint32(magnitude + uint32(0xC8000FFF) + uint32((magnitude >> 13) & 1)) >> 13
    # Added to a half, the spacing of subnormal float16 is that of the sum.
    subnormal = uint32(bits_of(number_of(magnitude) + float32(0.5)) - uint32(0x3F000000))
    half = subnormal if magnitude < uint32(0x38800000) else normal
    half = uint32(0x7C00) if magnitude >= uint32(0x47800000) else half
    half = uint32(0x7E00) if is_nan(bits) else half
    return uint16(half | ((bits >> 16) & 0x8000))


# By the names of their codecs, what loops call to load and to store them.
HALVES = {"bfloat16": (from_bfloat16, to_bfloat16), "float16": (from_float16, to_float16)}
