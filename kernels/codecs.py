"""How a stream of numbers is stored: float32 values on one side, buffers in memory on the other.

A codec is a pair of JIT functions and the buffers they need. `load(addresses, offsets, mask, start)` returns float32
values; `store(addresses, offsets, mask, start, value, key)` writes them. `addresses` is a tuple of int64 addresses, one
per buffer, 16-byte aligned where `mask` is None (the full-block path) and only element-aligned otherwise. `offsets` are
int64 element indices, `start` the first of the block, so that what is stored once for several elements needs no
division. `key = (seed, step, origin, runs)` names the random bits: `origin + offset` is the element's index among all
parameters, origin is a multiple of 8, and `runs` holds, flat, the offset of every eighth element (in the full-block
path only). A codec that keeps several buffers (a value and its scales, say) lists them all in `kernels/formats.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .formats import FORMATS, Buffer
from .language import tl, triton

ALIGNMENT = 16  # bytes, of a 128-bit access
ROUNDS = tl.constexpr(7)  # of Philox-4x32; the fewest known to pass the statistical tests (Salmon et al. 2011)


@dataclass(frozen=True, eq=False)
class Codec:
    """A storage format: its name, its buffers and its two functions."""

    name: str
    buffers: tuple[Buffer, ...]
    load: Any
    store: Any


@triton.jit
def _load(address, offsets, mask, ELEMENT: tl.constexpr):
    """Elements as they are stored; 0 where the mask leaves them out."""
    pointer = address.to(tl.pointer_type(ELEMENT))
    if mask is None:  # only on this path does the alignment hold that makes 128-bit accesses
        return tl.load(tl.multiple_of(pointer, 16) + offsets)
    else:
        return tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def _store(address, offsets, mask, value, ELEMENT: tl.constexpr):
    """Elements in the format of `value`, where the mask has them."""
    pointer = address.to(tl.pointer_type(ELEMENT))
    if mask is None:
        tl.store(tl.multiple_of(pointer, 16) + offsets, value)
    else:
        tl.store(pointer + offsets, value, mask=mask)


@triton.jit
def load_float32(addresses, offsets, mask, start):
    """As stored."""
    return _load(addresses[0], offsets, mask, tl.float32)


@triton.jit
def store_float32(addresses, offsets, mask, start, value, key):
    """As it is."""
    _store(addresses[0], offsets, mask, value, tl.float32)


@triton.jit
def load_float16(addresses, offsets, mask, start):
    """Exact: float32 has every float16."""
    return _load(addresses[0], offsets, mask, tl.float16).to(tl.float32)


@triton.jit
def store_float16(addresses, offsets, mask, start, value, key):
    """To nearest, ties to even; beyond the largest float16, infinity."""
    _store(addresses[0], offsets, mask, value.to(tl.float16), tl.float16)


@triton.jit
def load_bfloat16(addresses, offsets, mask, start):
    """Exact: float32 has every bfloat16."""
    return _load(addresses[0], offsets, mask, tl.bfloat16).to(tl.float32)


@triton.jit
def store_bfloat16(addresses, offsets, mask, start, value, key):
    """To nearest, ties to even."""
    _store(addresses[0], offsets, mask, value.to(tl.bfloat16), tl.bfloat16)


@triton.jit
def _random_words(group, key):
    """Four random words for each group of 8 consecutive elements of the model, enough for 16 bits an element."""
    seed, step = key[0], key[1]
    low = (group & 0xFFFFFFFF).to(tl.uint32)
    zero = low * 0
    return tl.philox(seed, low, (group >> 32).to(tl.uint32), zero + step.to(tl.uint32), zero, ROUNDS)


@triton.jit
def _random_bits(index, key):
    """16 random bits for each element, wherever it lies: its group's words, and one half of one of them."""
    word0, word1, word2, word3 = _random_words(index >> 3, key)
    chosen = (index >> 1) & 3
    word = tl.where(chosen < 2, tl.where(chosen == 0, word0, word1), tl.where(chosen == 2, word2, word3))
    return (word >> ((index & 1) * 16).to(tl.uint32)) & 0xFFFF


@triton.jit
def _random_bits_of_runs(runs, key):
    """The same, flat, for runs of 8 elements named by their first: one call of the generator serves a run."""
    word0, word1, word2, word3 = _random_words(runs >> 3, key)
    words = tl.join(tl.join(word0, word2), tl.join(word1, word3))
    return tl.reshape(tl.join(words & 0xFFFF, words >> 16), (runs.shape[0] * 8,))


@triton.jit
def store_bfloat16_stochastic(addresses, offsets, mask, start, value, key):
    """Adds 16 random bits below the bfloat16 mantissa and truncates, so that the rounding error is zero in the mean."""
    origin, runs = key[2], key[3]
    if mask is None:
        noise = tl.reshape(_random_bits_of_runs(origin + runs, key), value.shape)
    else:
        noise = _random_bits(origin + offsets, key)
    bits = value.to(tl.uint32, bitcast=True)
    rounded = ((bits + noise) & 0xFFFF0000).to(tl.float32, bitcast=True)
    # NaN and infinity have no neighbours to choose between; the noise would turn one into the other.
    kept = tl.where(tl.abs(value) < float("inf"), rounded, value)
    _store(addresses[0], offsets, mask, kept.to(tl.bfloat16), tl.bfloat16)


@triton.jit
def load_float64(addresses, offsets, mask, start):
    """As stored; on the CPU only, where rules compute in this format."""
    return _load(addresses[0], offsets, mask, tl.float64)


@triton.jit
def store_float64(addresses, offsets, mask, start, value, key):
    """As it is; on the CPU only."""
    _store(addresses[0], offsets, mask, value, tl.float64)


FLOAT32 = Codec("float32", FORMATS["float32"], load_float32, store_float32)
FLOAT16 = Codec("float16", FORMATS["float16"], load_float16, store_float16)
BFLOAT16 = Codec("bfloat16", FORMATS["bfloat16"], load_bfloat16, store_bfloat16)
STOCHASTIC = Codec("bfloat16_stochastic", FORMATS["bfloat16_stochastic"], load_bfloat16, store_bfloat16_stochastic)
FLOAT64 = Codec("float64", FORMATS["float64"], load_float64, store_float64)
CODECS = {codec.name: codec for codec in (FLOAT32, FLOAT16, BFLOAT16, STOCHASTIC, FLOAT64)}


def codecs_of(formats: tuple[str, ...]) -> tuple[Codec, ...]:
    """The codecs of these names."""
    return tuple(CODECS[name] for name in formats)
