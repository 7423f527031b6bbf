"""The storage formats on the host: `load` and `store` of a piece of one stream, named as in `rlx_gpu.kernels.codecs`.

Each is made for the format that a rule computes in, `real`, and takes `(stream, first, count, values)`: the address of
the stream's int64 words, the key of its random bits (seed, step, origin) and then its buffers' addresses, as the
elementwise driver lays them out; the first element; how many, at most PIECE; and where the values are, of a SLOT of
which the second half is for the codec to use.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from numba import njit

from ...kernels.codecs import ROUNDS
from .build import address_of, named
from .halves import from_bfloat16, from_float16, is_nan, to_bfloat16, to_float16
from .native import bits_of, float32, float64, int64, pointer, prefetch, uint16, uint32, uint64

PIECE = 1024  # elements: what is converted stays in the nearest cache
SLOT = 16 * PIECE  # bytes
SEED, STEP, ORIGIN, BUFFERS = range(4)  # the words of a stream
STREAM_WORDS = 16
PHILOX_ROUNDS = int(ROUNDS.value)
Function = Callable[[int, int, int, int], None]


@functools.cache
def codec_function(function: Any, double: bool) -> int:
    """The address of the host's form of a codec's JIT function; 0 where values can be used as they are stored."""
    name = function.__name__
    if name.endswith("_float64" if double else "_float32"):
        return 0
    make = getattr(sys.modules[__name__], name, None)
    if make is None:
        raise NotImplementedError(f"{name} has no form for tensors on the CPU; {__name__} is where it belongs")
    real = float64 if double else float32
    return address_of(named(make(real), f"{name}_as_{real}"))


def load_float32(real: Any) -> Function:
    """Exact in float64."""

    def load(stream: int, first: int, count: int, values: int) -> None:
        source = pointer(pointer(stream, int64)[BUFFERS] + 4 * first, float32)
        target = pointer(values, real)
        for i in range(count):
            target[i] = real(source[i])

    return load


def store_float32(real: Any) -> Function:
    """To nearest, ties to even."""

    def store(stream: int, first: int, count: int, values: int) -> None:
        source = pointer(values, real)
        target = pointer(pointer(stream, int64)[BUFFERS] + 4 * first, float32)
        for i in range(count):
            target[i] = float32(source[i])

    return store


def load_float64(real: Any) -> Function:
    """To nearest, ties to even."""

    def load(stream: int, first: int, count: int, values: int) -> None:
        source = pointer(pointer(stream, int64)[BUFFERS] + 8 * first, float64)
        target = pointer(values, real)
        for i in range(count):
            target[i] = real(source[i])

    return load


def store_float64(real: Any) -> Function:
    """Exact."""

    def store(stream: int, first: int, count: int, values: int) -> None:
        source = pointer(values, real)
        target = pointer(pointer(stream, int64)[BUFFERS] + 8 * first, float64)
        for i in range(count):
            target[i] = float64(source[i])

    return store


def load_bfloat16(real: Any) -> Function:
    """Exact."""

    def load(stream: int, first: int, count: int, values: int) -> None:
        at = pointer(stream, int64)[BUFFERS] + 2 * first
        prefetch(at + 2 * count, 2 * count)  # the next piece, while this one is stepped
        source = pointer(at, uint16)
        target = pointer(values, real)
        for i in range(count):
            target[i] = real(from_bfloat16(source[i]))

    return load


def store_bfloat16(real: Any) -> Function:
    """To nearest, ties to even."""

    def store(stream: int, first: int, count: int, values: int) -> None:
        source = pointer(values, real)
        target = pointer(pointer(stream, int64)[BUFFERS] + 2 * first, uint16)
        for i in range(count):
            target[i] = to_bfloat16(float32(source[i]))

    return store


def load_float16(real: Any) -> Function:
    """Exact."""

    def load(stream: int, first: int, count: int, values: int) -> None:
        at = pointer(stream, int64)[BUFFERS] + 2 * first
        prefetch(at + 2 * count, 2 * count)
        source = pointer(at, uint16)
        target = pointer(values, real)
        for i in range(count):
            target[i] = real(from_float16(source[i]))

    return load


def store_float16(real: Any) -> Function:
    """To nearest, ties to even; beyond the largest float16, infinity."""

    def store(stream: int, first: int, count: int, values: int) -> None:
        source = pointer(values, real)
        target = pointer(pointer(stream, int64)[BUFFERS] + 2 * first, uint16)
        for i in range(count):
            target[i] = to_float16(float32(source[i]))

    return store


def store_bfloat16_stochastic(real: Any) -> Function:
    """Adds 16 random bits below the bfloat16 mantissa and truncates, as the kernels' codec does, to the bit."""

    def store(stream: int, first: int, count: int, values: int) -> None:
        words = pointer(stream, int64)
        source = pointer(values, real)
        target = pointer(words[BUFFERS] + 2 * first, uint16)
        position = words[ORIGIN] + first
        room = values + PIECE * 8
        random_words(room, position >> 3, ((position + count + 7) >> 3) - (position >> 3), words[SEED], words[STEP])
        noise = pointer(
            room + 2 * (position & 7), uint16
        )  # the halves of a group's words, in the order of its elements
        for i in range(count):
            bits = bits_of(float32(source[i]))
            rounded = uint32(bits + uint32(noise[i])) >> 16
            kept = uint32(0x7FC0) if is_nan(bits) else uint32(bits >> 16)
            finite = (bits & 0x7F800000) != 0x7F800000
            target[i] = uint16(rounded if finite else kept)

    return store


@njit
def random_words(room: int, group: int, count: int, seed: int, step: int) -> None:
    """Four random words, Philox-4x32, for each of so many groups of 8 consecutive elements of the model."""
    words = pointer(room, uint32)
    for i in range(count):
        index = group + i
        word0, word1, word2, word3 = (
            uint64(index & 0xFFFFFFFF),
            uint64((index >> 32) & 0xFFFFFFFF),
            uint64(step),
            uint64(0),
        )
        key0, key1 = uint64(seed & 0xFFFFFFFF), uint64((seed >> 32) & 0xFFFFFFFF)
        for _ in range(PHILOX_ROUNDS):
            product0, product2 = word0 * uint64(0xD2511F53), word2 * uint64(0xCD9E8D57)
            word0, word1 = (product2 >> uint64(32)) ^ word1 ^ key0, product2 & uint64(0xFFFFFFFF)
            word2, word3 = (product0 >> uint64(32)) ^ word3 ^ key1, product0 & uint64(0xFFFFFFFF)
            key0, key1 = (
                (key0 + uint64(0x9E3779B9)) & uint64(0xFFFFFFFF),
                (key1 + uint64(0xBB67AE85)) & uint64(0xFFFFFFFF),
            )
        words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3] = (
            uint32(word0),
            uint32(word1),
            uint32(word2),
            uint32(word3),
        )
