"""Two formats of several buffers, for tests: float32 cut in halves, and 8-bit codes with a scale for 32 of them."""

from __future__ import annotations

from typing import Any

import pytest
import triton
import triton.language as tl

from rlx_gpu import trait
from rlx_gpu.engine import state
from rlx_gpu.kernels import codecs, formats
from rlx_gpu.kernels.codecs import Codec, _load, _store
from rlx_gpu.kernels.formats import Buffer

GROUP = 32
MOST = 127.0
_GROUP, _MOST = tl.constexpr(GROUP), tl.constexpr(MOST)


@triton.jit
def load_split32(addresses, offsets, mask, start):
    """Exactly the float32 that was stored."""
    high = _load(addresses[0], offsets, mask, tl.int16).to(tl.int32)
    low = _load(addresses[1], offsets, mask, tl.int16).to(tl.int32)
    return ((high << 16) | (low & 0xFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def store_split32(addresses, offsets, mask, start, value, key):
    """The upper bits, a bfloat16 rounded down, and the lower ones."""
    bits = value.to(tl.int32, bitcast=True)
    _store(addresses[0], offsets, mask, (bits >> 16).to(tl.int16), tl.int16)
    _store(addresses[1], offsets, mask, (bits & 0xFFFF).to(tl.int16), tl.int16)


@triton.jit
def load_shared8(addresses, offsets, mask, start):
    """A code times its group's scale; groups are counted from the first element of the block."""
    group = start // _GROUP + tl.arange(0, offsets.shape[0]) // _GROUP
    codes = _load(addresses[0], offsets, mask, tl.int8).to(tl.float32)
    return codes * _load(addresses[1], group, mask, tl.float32)


@triton.jit
def store_shared8(addresses, offsets, mask, start, value, key):
    """The group's largest magnitude is 127 steps; codes are rounded to the nearest."""
    count: tl.constexpr = offsets.shape[0]
    values = tl.reshape(value if mask is None else tl.where(mask, value, 0.0), (count // _GROUP, _GROUP))
    scale = tl.max(tl.abs(values), axis=1) / _MOST
    inverse = tl.where(scale > 0.0, 1.0 / tl.where(scale > 0.0, scale, 1.0), 0.0)
    codes = tl.reshape(tl.floor(values * inverse[:, None] + 0.5), (count,)).to(tl.int8)
    _store(addresses[0], offsets, mask, codes, tl.int8)
    lane = tl.arange(0, count)
    scales = tl.reshape(tl.broadcast_to(scale[:, None], (count // _GROUP, _GROUP)), (count,))
    first = lane % _GROUP == 0
    places = addresses[1].to(tl.pointer_type(tl.float32)) + (start // _GROUP + lane // _GROUP)
    tl.store(places, scales, mask=first if mask is None else first & mask)


ADDED = (
    Codec("split32", (Buffer("", "int16"), Buffer("_low", "int16")), load_split32, store_split32),
    Codec("shared8", (Buffer("", "int8"), Buffer("_scale", "float32", GROUP)), load_shared8, store_shared8),
)


@pytest.fixture
def added(monkeypatch: Any) -> None:
    """The package with these two formats, as entries of its tables alone."""
    names = (*formats.STATE_FORMATS, *(codec.name for codec in ADDED))
    for module in (formats, state, trait):
        monkeypatch.setattr(module, "STATE_FORMATS", names)
    for codec in ADDED:
        monkeypatch.setitem(formats.FORMATS, codec.name, codec.buffers)
        monkeypatch.setitem(codecs.CODECS, codec.name, codec)
        monkeypatch.setitem(formats.STORAGES, codec.name, ("float32", "float32", codec.name))
