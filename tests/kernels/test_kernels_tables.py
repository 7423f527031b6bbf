"""Property tests of the tables that the launches read, and of what is said about memory layouts."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rlx_gpu.engine import tables
from rlx_gpu.engine.memory import is_dense, same_order

lengths = st.lists(st.integers(0, 300), min_size=1, max_size=6).map(np.array)
sizes = st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=1, max_size=5).map(np.array)


@given(lengths, st.integers(1, 130))
def test_blocks_cover_every_element_once_and_in_order(numels, block):
    programs, ranges = tables.blocks(numels, block)
    assert (programs.dtype, ranges.dtype) == (np.int32, np.int64)
    covered = [(t, i) for t, b in programs.tolist() for i in range(b * block, min((b + 1) * block, numels[t]))]
    assert covered == [(t, i) for t, numel in enumerate(numels) for i in range(numel)]
    for tensor, (first, last) in enumerate(ranges):
        assert_array_equal(np.flatnonzero(programs[:, 0] == tensor), np.arange(first, last))
    assert all(b * block < numels[t] for t, b in programs)  # no program has nothing to do


@given(sizes, st.integers(1, 40), st.integers(1, 40))
def test_tiles_cover_every_element_once(shapes, tile_rows, tile_cols):
    rows, cols = shapes.T
    programs, ranges = tables.tiles(rows, cols, tile_rows, tile_cols)
    seen = [np.zeros(shape, dtype=int) for shape in shapes]
    for tensor, row, col in programs:
        part = seen[tensor][row * tile_rows : (row + 1) * tile_rows, col * tile_cols : (col + 1) * tile_cols]
        assert part.size
        part += 1
    assert all((count == 1).all() for count in seen)
    for tensor, (first, last) in enumerate(ranges):
        assert_array_equal(np.flatnonzero(programs[:, 0] == tensor), np.arange(first, last))


@given(sizes, st.integers(1, 40))
def test_vectors_cover_every_row_and_column_once(shapes, block):
    programs = tables.vectors(*shapes.T, block)
    assert programs.dtype == np.int32
    covered = [(t, s, i) for t, s, b in programs for i in range(b * block, min((b + 1) * block, shapes[t][s]))]
    wanted = [(t, side, i) for t, shape in enumerate(shapes) for side in (0, 1) for i in range(shape[side])]
    assert sorted(covered) == wanted


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5))
def test_tables_keep_their_bits(words):
    """Whatever a float32 they would be, signalling NaN among them."""
    table = np.array([*words, 0x7F800001], dtype=np.uint32).view(np.float32)
    sent = tables.upload(table, torch.device("cpu"))
    assert_array_equal(sent.numpy().view(np.uint32), table.view(np.uint32))
    written = torch.zeros(len(table))
    tables.send(table, written)
    assert_array_equal(written.numpy().view(np.uint32), table.view(np.uint32))


@st.composite
def strided(draw):
    """A tensor of any strides, often those of a permuted contiguous one."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    if draw(st.booleans()):
        order = draw(st.permutations(range(len(shape))))
        permuted = torch.empty([shape[i] for i in order])
        return permuted.permute([order.index(i) for i in range(len(shape))])
    strides = [draw(st.integers(0, 13)) for _ in shape]
    return torch.empty(1000).as_strided(shape, strides)


def places(tensor):
    """Where each element lies, in the order of the indices."""
    return [
        sum(i * stride for i, stride in zip(index, tensor.stride(), strict=True))
        for index in itertools.product(*map(range, tensor.shape))
    ]


@given(strided())
def test_is_dense_tells_whether_memory_has_gaps_or_overlaps(tensor):
    assert is_dense(tensor) == (sorted(places(tensor)) == list(range(tensor.numel())))


@given(strided(), st.data())
def test_same_order_tells_whether_flat_positions_are_the_same_elements(left, data):
    strides = data.draw(st.permutations(left.stride()))
    right = torch.empty(1000).as_strided(left.shape, strides)
    for other in (right, torch.empty(left.shape), left):
        if left.numel():
            assert same_order(left, other) == (places(left) == places(other))
