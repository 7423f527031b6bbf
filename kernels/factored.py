"""The driver for factored second moments: row and column means of every matrix, without float atomics.

Six launches serve all matrices: tile sums, moments, `finish_sums_kernel` for the mean of `row_var`, norms, and again
`finish_sums_kernel`, update. The update tensor is never stored: the norms and the update recompute it, an entry of the
gradient times a factor of its row and one of its column, which the moments leave in the workspace.

Tables, all on the device (built by `rlx_gpu.launch` with `rlx_gpu.launch_tables`):
    table   int64 [tensors, columns]: the addresses of parameter, gradient, row_var and col_var, then ROWS, COLS,
            VECTORIZED (1: every tile row is 16-byte aligned), ROW_PARTIALS and COL_PARTIALS (first element in the
            workspace, where the moments leave the factors), HYPER_ROW and ORIGIN.
    tiles   int32 [programs, 3]: tensor, tile row, tile column.
    vectors int32 [programs, 3]: tensor, side (0 rows, 1 columns), block.
    hypers, control: as in `elementwise`.
"""

from __future__ import annotations

import functools
from typing import Any

import triton
import triton.language as tl

from .arithmetic import divide
from .codecs import Codec
from .elementwise import load_hyper, source_hash, stream_addresses
from .spec import FactoredSpec

TILE_ROWS = 64  # 64 elements a thread, over which it spreads what a program does once
TILE_COLS = 128
PART_ROWS = 16
VECTOR_BLOCK = 64
VECTOR_SPLIT = 32
TAIL_COLUMNS = ("rows", "cols", "vectorized", "row_partials", "col_partials", "hyper_row", "origin")


@triton.jit
def _matrix(table_ptr, entries_ptr, program, COLUMNS: tl.constexpr):
    """The program's entry (tensor, i, j), its tensor's table row, and that matrix's (rows, cols)."""
    tensor = tl.load(entries_ptr + 3 * program).to(tl.int64)
    entry = (
        tensor,
        tl.load(entries_ptr + 3 * program + 1).to(tl.int64),
        tl.load(entries_ptr + 3 * program + 2).to(tl.int64),
    )
    row_ptr = table_ptr + tensor * COLUMNS
    return entry, row_ptr, (tl.load(row_ptr + COLUMNS - 7), tl.load(row_ptr + COLUMNS - 6))


@triton.jit
def _squares(addresses, offsets, mask, hyper, scale, RULES: tl.constexpr, STREAMS: tl.constexpr):
    square = RULES[0](STREAMS[1][0](addresses[1], offsets, mask) * scale, hyper)
    if mask is not None:
        square = tl.where(mask, square, 0.0)
    return square


@triton.jit
def factored_sums_kernel(
    table_ptr,
    tiles_ptr,
    hypers_ptr,
    control_ptr,
    workspace_ptr,
    RULES: tl.constexpr,
    STREAMS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SCALARS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
    PART_ROWS: tl.constexpr,
    SOURCE: tl.constexpr,
):
    """Row and column sums of one tile of squares, each to its own place in the workspace."""
    if tl.load(control_ptr + 1) != 0.0:
        return
    program = tl.program_id(0).to(tl.int64)
    entry, row_ptr, extent = _matrix(table_ptr, tiles_ptr, program, COLUMNS)
    _, tile_row, tile_col = entry
    rows, cols = extent
    addresses = stream_addresses(row_ptr, STREAMS)
    hyper, _ = load_hyper(hypers_ptr, row_ptr, control_ptr, COLUMNS, SCALARS)
    scale = tl.load(control_ptr)
    row_partials = workspace_ptr + tl.load(row_ptr + COLUMNS - 4) + tile_col * rows
    col_partials = workspace_ptr + tl.load(row_ptr + COLUMNS - 3) + tile_row * cols
    col = tile_col * TILE_COLS + tl.arange(0, TILE_COLS)
    full = ((tile_row + 1) * TILE_ROWS <= rows) & ((tile_col + 1) * TILE_COLS <= cols)
    if full & (tl.load(row_ptr + COLUMNS - 5) != 0):
        row = tile_row * TILE_ROWS + tl.arange(0, TILE_ROWS)
        # A hint on `cols` itself would hold in the other branch too; the product says the same here alone.
        offsets = row[:, None] * (cols // 8 * 8) + col[None, :]
        square = _squares(addresses, offsets, None, hyper, scale, RULES, STREAMS)
        tl.store(row_partials + row, tl.sum(square, axis=1), mask=row < rows)
        tl.store(col_partials + col, tl.sum(square, axis=0), mask=col < cols)
    else:
        col_square = tl.zeros((PART_ROWS, TILE_COLS), dtype=tl.float32)
        for part in range(tl.cdiv(tl.minimum(rows - tile_row * TILE_ROWS, TILE_ROWS), PART_ROWS)):
            row = tile_row * TILE_ROWS + part * PART_ROWS + tl.arange(0, PART_ROWS)
            offsets = row[:, None] * cols + col[None, :]
            mask = (row < rows)[:, None] & (col < cols)[None, :]
            square = _squares(addresses, offsets, mask, hyper, scale, RULES, STREAMS)
            tl.store(row_partials + row, tl.sum(square, axis=1), mask=row < rows)
            col_square += square
        tl.store(col_partials + col, tl.sum(col_square, axis=0), mask=col < cols)


@triton.jit
def factored_moments_kernel(
    table_ptr,
    vectors_ptr,
    hypers_ptr,
    control_ptr,
    workspace_ptr,
    sums_ptr,
    RULES: tl.constexpr,
    STREAMS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SCALARS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    SOURCE: tl.constexpr,
):
    """Adds the tiles' sums in order and moves one block of `row_var` or `col_var`.

    The block's factors take the place of its first tile's sums, the sum of its variances goes into `sums` [programs].
    """
    if tl.load(control_ptr + 1) != 0.0:
        return
    program = tl.program_id(0).to(tl.int64)
    entry, row_ptr, extent = _matrix(table_ptr, vectors_ptr, program, COLUMNS)
    _, side, block = entry
    rows, cols = extent
    addresses = stream_addresses(row_ptr, STREAMS)
    hyper, key = load_hyper(hypers_ptr, row_ptr, control_ptr, COLUMNS, SCALARS)
    on_rows = side == 0
    length = tl.where(on_rows, rows, cols)
    across = tl.where(on_rows, cols, rows)
    tiles = tl.where(on_rows, tl.cdiv(cols, TILE_COLS), tl.cdiv(rows, TILE_ROWS))
    partials = workspace_ptr + tl.where(on_rows, tl.load(row_ptr + COLUMNS - 4), tl.load(row_ptr + COLUMNS - 3))
    index = block * BLOCK + tl.arange(0, BLOCK)
    mask = index < length
    total = tl.zeros((SPLIT, BLOCK), dtype=tl.float32)
    for first in range(0, tiles, SPLIT):
        tile = first + tl.arange(0, SPLIT)
        inside = (tile < tiles)[:, None] & mask[None, :]
        total += tl.load(partials + tile[:, None] * length + index[None, :], mask=inside, other=0.0)
    mean_square = divide(tl.sum(total, axis=0), across.to(tl.float32))
    if on_rows:
        variance, factor = RULES[1](STREAMS[2][0](addresses[2], index, mask), mean_square, hyper)
        STREAMS[2][1](addresses[2], index, mask, variance, key)
    else:
        variance, factor = RULES[1](STREAMS[3][0](addresses[3], index, mask), mean_square, hyper)
        STREAMS[3][1](addresses[3], index, mask, variance, key)
    tl.store(partials + index, factor, mask=mask)
    tl.store(sums_ptr + program, tl.sum(tl.where(mask, variance, 0.0), axis=0))


@triton.jit
def _part_step(
    addresses,
    offsets,
    mask,
    factors,
    totals,
    hyper,
    scale,
    key,
    RULES: tl.constexpr,
    STREAMS: tl.constexpr,
    UPDATE: tl.constexpr,
):
    """A few rows of a tile; returns their u² and θ², or stores the new θ with UPDATE."""
    param = STREAMS[0][0](addresses[0], offsets, mask)
    grad = STREAMS[1][0](addresses[1], offsets, mask) * scale
    direction = RULES[2](grad, factors[0], factors[1], factors[2], hyper)
    if UPDATE:
        param = RULES[3](param, direction, totals[0], totals[1], totals[2], hyper)
        STREAMS[0][1](addresses[0], offsets, mask, param, key)
    elif mask is not None:
        direction = tl.where(mask, direction, 0.0)
    return direction * direction, param * param


@triton.jit
def factored_step_kernel(
    table_ptr,
    tiles_ptr,
    hypers_ptr,
    control_ptr,
    workspace_ptr,
    row_sums_ptr,
    sums_ptr,
    RULES: tl.constexpr,
    STREAMS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SCALARS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
    PART_ROWS: tl.constexpr,
    UPDATE: tl.constexpr,
    SOURCE: tl.constexpr,
):
    """One tile: its sums of u² and θ² into `sums` [programs, 2], or with UPDATE the new θ from `sums` [tensors, 2]."""
    if tl.load(control_ptr + 1) != 0.0:
        return
    program = tl.program_id(0).to(tl.int64)
    entry, row_ptr, extent = _matrix(table_ptr, tiles_ptr, program, COLUMNS)
    tensor, tile_row, tile_col = entry
    rows, cols = extent
    addresses = stream_addresses(row_ptr, STREAMS)
    hyper, key = load_hyper(hypers_ptr, row_ptr, control_ptr, COLUMNS, SCALARS)
    scale = tl.load(control_ptr)
    row_mean = divide(tl.load(row_sums_ptr + tensor), rows.to(tl.float32))
    totals = (0.0, 0.0, 0.0)
    if UPDATE:
        numel = (rows * cols).to(tl.float32)
        totals = (tl.load(sums_ptr + 2 * tensor), tl.load(sums_ptr + 2 * tensor + 1), numel)
    row_factors = workspace_ptr + tl.load(row_ptr + COLUMNS - 4)
    col_factors = workspace_ptr + tl.load(row_ptr + COLUMNS - 3)
    col = tile_col * TILE_COLS + tl.arange(0, TILE_COLS)
    in_cols = col < cols
    col_factor = tl.load(col_factors + col, mask=in_cols, other=0.0)
    full = ((tile_row + 1) * TILE_ROWS <= rows) & ((tile_col + 1) * TILE_COLS <= cols)
    if full & (tl.load(row_ptr + COLUMNS - 5) != 0):
        direction_sq = tl.zeros((PART_ROWS, TILE_COLS), dtype=tl.float32)
        param_sq = direction_sq
        for part in range(TILE_ROWS // PART_ROWS):
            row = tile_row * TILE_ROWS + part * PART_ROWS + tl.arange(0, PART_ROWS)
            row_factor = tl.load(row_factors + row, mask=row < rows, other=0.0)
            offsets = row[:, None] * (cols // 8 * 8) + col[None, :]
            run_cols = tile_col * TILE_COLS + tl.arange(0, TILE_COLS // 8) * 8
            runs = tl.reshape(row[:, None] * cols + run_cols[None, :], (PART_ROWS * (TILE_COLS // 8),))
            factors = (row_factor[:, None], col_factor[None, :], row_mean)
            squares = _part_step(
                addresses, offsets, None, factors, totals, hyper, scale, key + (runs,), RULES, STREAMS, UPDATE
            )
            if not UPDATE:
                direction_sq += squares[0]
                param_sq += squares[1]
        direction_sq = tl.sum(direction_sq)
        param_sq = tl.sum(param_sq)
    else:
        # One element a thread at a time, as in the elementwise driver.
        direction_sq = tl.zeros((1, TILE_COLS), dtype=tl.float32)
        param_sq = direction_sq
        for line in range(tl.minimum(rows - tile_row * TILE_ROWS, TILE_ROWS)):
            row = tile_row * TILE_ROWS + line + tl.arange(0, 1)
            row_factor = tl.load(row_factors + row, mask=row < rows, other=0.0)
            offsets = row[:, None] * cols + col[None, :]
            mask = (row < rows)[:, None] & in_cols[None, :]
            factors = (row_factor[:, None], col_factor[None, :], row_mean)
            squares = _part_step(
                addresses, offsets, mask, factors, totals, hyper, scale, key + (offsets,), RULES, STREAMS, UPDATE
            )
            if not UPDATE:
                direction_sq += squares[0]
                param_sq += squares[1]
        direction_sq = tl.sum(direction_sq)
        param_sq = tl.sum(param_sq)
    if not UPDATE:
        tl.store(sums_ptr + 2 * program, direction_sq)
        tl.store(sums_ptr + 2 * program + 1, param_sq)


def columns(codecs: tuple[Codec, ...]) -> int:
    """Width of the table for parameter, gradient, row_var and col_var in these codecs."""
    return sum(len(codec.buffers) for codec in codecs) + len(TAIL_COLUMNS)


@functools.cache
def constants(spec: FactoredSpec, codecs: tuple[Codec, ...], scalars: int) -> dict[str, dict[str, Any]]:
    """The compile-time arguments of each launch, by name, in order, but for the two of `finish_sums_kernel`."""
    streams, first = [], 0
    for codec in codecs:
        streams.append((codec.load, codec.store, first, len(codec.buffers)))
        first += len(codec.buffers)
    rules = (spec.square, spec.accumulate, spec.direction, spec.update)
    common = {
        "RULES": rules,
        "STREAMS": tuple(streams),
        "COLUMNS": columns(codecs),
        "SCALARS": scalars,
        "TILE_ROWS": TILE_ROWS,
        "TILE_COLS": TILE_COLS,
        "SOURCE": source_hash(*rules, *(f for stream in streams for f in stream[:2])),
    }
    return {
        "sums": {**common, "PART_ROWS": PART_ROWS},
        "moments": {**common, "BLOCK": VECTOR_BLOCK, "SPLIT": VECTOR_SPLIT},
        "norms": {**common, "PART_ROWS": PART_ROWS, "UPDATE": False},
        "update": {**common, "PART_ROWS": PART_ROWS, "UPDATE": True},
    }
