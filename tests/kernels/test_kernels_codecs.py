"""Property tests of the storage codecs: what is stored is the reference's rounding, for any float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

from rlx_gpu.kernels.codecs import CODECS
from rlx_gpu.reference.formats import round_to, stochastic_bfloat16

SIZE = 64
KEY = (0x1234567890ABCDE, 41, 0x7FFFFFF0_FFFFFFE0)  # seed, step, origin: the index passes a 32-bit boundary
EDGES = (
    *(0, 1, 0x007FFFFF, 0x00800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF),
    # Ties of bfloat16 and what lies beside them, among subnormals and before infinity too.
    *(0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x3FFF8000, 0x7F7F7FFF, 0x7F7F8000, 0x00008000, 0x00018000),
    # The same of float16.
    *(0x477FE000, 0x477FF000, 0x477FEFFF, 0x33000000, 0x33000001, 0x33800000, 0x387FC000, 0x38800000),
)
EDGES = np.resize(np.array([word | sign for sign in (0, 0x80000000) for word in EDGES], dtype=np.uint32), SIZE)


@triton.jit
def store_kernel(
    values_ptr, address_ptr, key_ptr, count, STORE: tl.constexpr, MASKED: tl.constexpr, SIZE: tl.constexpr
):
    offsets = tl.arange(0, SIZE).to(tl.int64)
    runs = (tl.arange(0, SIZE // 8) * 8).to(tl.int64)
    key = (tl.load(key_ptr), tl.load(key_ptr + 1).to(tl.int32), tl.load(key_ptr + 2), runs)
    value = tl.load(values_ptr + offsets)
    if MASKED:
        STORE((tl.load(address_ptr),), offsets, offsets < count, 0, value, key)
    else:
        STORE((tl.load(address_ptr),), offsets, None, 0, value, key)


@triton.jit
def load_kernel(values_ptr, address_ptr, count, LOAD: tl.constexpr, MASKED: tl.constexpr, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE).to(tl.int64)
    if MASKED:
        value = LOAD((tl.load(address_ptr),), offsets, offsets < count, 0)
    else:
        value = LOAD((tl.load(address_ptr),), offsets, None, 0)
    tl.store(values_ptr + offsets, value)


def store(codec, values, count=SIZE, target=None):
    """The buffer after storing the first `count` values."""
    target = torch.zeros(SIZE, dtype=getattr(torch, codec.buffers[0].dtype)) if target is None else target
    address, key = torch.tensor([target.data_ptr()]), torch.tensor(KEY)
    masked = count < SIZE
    store_kernel[(1,)](torch.from_numpy(values), address, key, count, STORE=codec.store, MASKED=masked, SIZE=SIZE)
    return target


def load(codec, source, count=SIZE):
    """The first `count` values of a buffer in float32; NaN in front of the load where it writes nothing."""
    values, address = torch.full((SIZE,), float("nan")), torch.tensor([source.data_ptr()])
    load_kernel[(1,)](values, address, count, LOAD=codec.load, MASKED=count < SIZE, SIZE=SIZE)
    return values.numpy()


def rounded(codec, values):
    """What the reference says a codec keeps."""
    if codec.name == "bfloat16_stochastic":
        seed, step, origin = KEY
        return stochastic_bfloat16(values, seed, step, origin + np.arange(SIZE, dtype=np.int64))
    return round_to(values.astype(np.float64), codec.buffers[0].dtype)


floats = arrays(np.uint32, SIZE, elements=st.integers(0, 2**32 - 1)).map(lambda words: words.view(np.float32))


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@given(values=floats)
@example(values=EDGES.view(np.float32))
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_stored_float32_comes_back_as_the_reference_rounds_it(codec, values):
    assert len(codec.buffers) == 1
    back = load(codec, store(codec, values)).astype(np.float64)
    assert_array_equal(back, rounded(codec, values))
    kept = ~np.isnan(back)
    assert_array_equal(np.signbit(back[kept]), np.signbit(values[kept]))


@pytest.mark.parametrize(
    "codec", [codec for codec in CODECS.values() if codec.name != "float64"], ids=lambda codec: codec.name
)
@given(words=st.integers(0, 2**16 - SIZE))
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_load_is_exact(codec, words):
    dtype = getattr(torch, codec.buffers[0].dtype)
    pattern = np.arange(words, words + SIZE).astype(np.uint16 if dtype.itemsize == 2 else np.uint32)
    source = torch.from_numpy(pattern << (16 if dtype.itemsize == 4 else 0)).view(dtype)
    assert_array_equal(load(codec, source), source.float().numpy())


@pytest.mark.parametrize("count", [0, 1, SIZE - 1])
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_masked_lanes_are_neither_written_nor_read(codec, count):
    values = np.linspace(1, 2, SIZE, dtype=np.float32)
    target = torch.full((SIZE,), -5.0, dtype=getattr(torch, codec.buffers[0].dtype))
    store(codec, values, count, target)
    assert_array_equal(target[count:].float().numpy(), -5.0)
    assert_array_equal(target[:count].double().numpy(), rounded(codec, values)[:count])
    target[count:] = float("nan")
    assert_array_equal(load(codec, target, count)[count:], 0.0)
