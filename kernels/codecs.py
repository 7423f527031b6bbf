"""How a stream of numbers is stored: float32 values on one side, buffers in memory on the other.

A codec is a pair of JIT functions and the buffers they need. `load(addresses, offsets, mask)` returns float32 values;
`store(addresses, offsets, mask, value, key)` writes them. `addresses` is a tuple of int64 addresses, one per buffer,
16-byte aligned where `mask` is None (the full-block path) and only element-aligned otherwise. `offsets` are int64
element indices; `key = (seed, step, origin)` names the random bits: `origin + offset` is the element's index among all
parameters. A codec that keeps several buffers (a value and its scales, a value and its correction) lists them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

ALIGNMENT = 16  # bytes, of a 128-bit access
ROUNDING_ROUNDS = 7  # of Philox-4x32; the fewest that pass the known statistical tests (Salmon et al. 2011, table 2)


@dataclass(frozen=True, eq=False)
class Codec:
    """A storage format: its name, the element types of its buffers (torch's names) and its two functions."""

    name: str
    buffers: tuple[str, ...]
    load: Any
    store: Any


@triton.jit
def _locate(address, offsets, mask, ELEMENT: tl.constexpr):
    """Pointers to elements; the alignment hint that makes 128-bit accesses holds in the full-block path only."""
    pointer = address.to(tl.pointer_type(ELEMENT))
    if mask is None:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + offsets


@triton.jit
def _load(address, offsets, mask, ELEMENT: tl.constexpr):
    if mask is None:
        return tl.load(_locate(address, offsets, mask, ELEMENT))
    else:
        return tl.load(_locate(address, offsets, mask, ELEMENT), mask=mask, other=0.0)


@triton.jit
def _store(address, offsets, mask, value, ELEMENT: tl.constexpr):
    if mask is None:
        tl.store(_locate(address, offsets, mask, ELEMENT), value)
    else:
        tl.store(_locate(address, offsets, mask, ELEMENT), value, mask=mask)


@triton.jit
def load_float32(addresses, offsets, mask):
    return _load(addresses[0], offsets, mask, tl.float32)


@triton.jit
def store_float32(addresses, offsets, mask, value, key):
    _store(addresses[0], offsets, mask, value, tl.float32)


@triton.jit
def load_float16(addresses, offsets, mask):
    return _load(addresses[0], offsets, mask, tl.float16).to(tl.float32)


@triton.jit
def store_float16(addresses, offsets, mask, value, key):
    _store(addresses[0], offsets, mask, value.to(tl.float16), tl.float16)


@triton.jit
def load_bfloat16(addresses, offsets, mask):
    return _load(addresses[0], offsets, mask, tl.bfloat16).to(tl.float32)


@triton.jit
def store_bfloat16(addresses, offsets, mask, value, key):
    _store(addresses[0], offsets, mask, value.to(tl.bfloat16), tl.bfloat16)


@triton.jit
def store_bfloat16_stochastic(addresses, offsets, mask, value, key):
    """Adds 16 random bits below the bfloat16 mantissa and truncates, so that the rounding error is zero in the mean."""
    seed, step, origin = key
    index = origin + offsets
    low = (index & 0xFFFFFFFF).to(tl.uint32)
    high = (index >> 32).to(tl.uint32)
    zero = low * 0
    noise, _, _, _ = tl.philox(seed, low, high, zero + step.to(tl.uint32), zero, 7)
    bits = value.to(tl.uint32, bitcast=True)
    rounded = ((bits + (noise & 0xFFFF)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    # NaN and infinity have no neighbours to choose between; the noise would turn one into the other.
    kept = tl.where(tl.abs(value) < float("inf"), rounded, value)
    _store(addresses[0], offsets, mask, kept.to(tl.bfloat16), tl.bfloat16)


FLOAT32 = Codec("float32", ("float32",), load_float32, store_float32)
FLOAT16 = Codec("float16", ("float16",), load_float16, store_float16)
BFLOAT16 = Codec("bfloat16", ("bfloat16",), load_bfloat16, store_bfloat16)
BFLOAT16_STOCHASTIC = Codec("bfloat16_stochastic", ("bfloat16",), load_bfloat16, store_bfloat16_stochastic)
CODECS = {codec.name: codec for codec in (FLOAT32, FLOAT16, BFLOAT16, BFLOAT16_STOCHASTIC)}
