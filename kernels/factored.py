"""The driver for factored second moments: row and column means of every matrix, without float atomics.

Six launches serve all matrices: tile sums, moments, `finish_sums_kernel` for the mean of `row_var`, norms, and again
`finish_sums_kernel`, update. The update tensor is never stored: the norms and the update recompute it, an entry of the
gradient times a factor of its row and one of its column, which the moments leave in the workspace.

Tables, all on the device (built by `rlx_gpu.engine.factored`):
    table   int64 [tensors, columns]: ROWS, COLS, VECTORIZED (1: every row of the parameter is 16-byte aligned),
            ROW_PARTIALS and COL_PARTIALS (first element in the workspace, where the moments leave the factors), MEMBER
            and ORIGIN as in the elementwise driver, then the addresses of parameter, gradient, row_var and col_var.
    tiles   int32 [programs, 3]: tensor, tile row, tile column.
    vectors int32 [programs, 3]: tensor, side (0 rows, 1 columns), block.
    rows, grads, words: as in `elementwise`.
"""

from __future__ import annotations

import functools
from typing import Any

from .arithmetic import divide
from .codecs import Codec
from .elementwise import ALIGNED, load_row, source_hash, stream_addresses, streams_of
from .language import tl, triton
from .spec import FactoredSpec

TILE_ROWS = 64  # 64 elements a thread, over which it spreads what a program does once
TILE_COLS = 128
PART_ROWS = 16
VECTOR_BLOCK = 128  # as many as a program has threads: with fewer, some would load what others have stored
VECTOR_SPLIT = 32
COLUMNS = ("rows", "cols", "vectorized", "row_partials", "col_partials", "member", "origin")
ROWS, COLS, VECTORIZED, ROW_PARTIALS, COL_PARTIALS, MEMBER, ORIGIN = (tl.constexpr(i) for i in range(len(COLUMNS)))


@triton.jit
def _matrix(table_ptr, entries_ptr, grads_ptr, program, TABLE_WIDTH: tl.constexpr):
    """The program's entry (tensor, i, j), and its matrix's table row, (rows, cols) and address of the gradient."""
    entry = ()
    for i in tl.static_range(3):
        entry = entry + (tl.load(entries_ptr + 3 * program + i).to(tl.int64),)
    row_ptr = table_ptr + entry[0] * TABLE_WIDTH
    extent = (tl.load(row_ptr + ROWS), tl.load(row_ptr + COLS))
    return entry, row_ptr, extent, tl.load(grads_ptr + tl.load(row_ptr + MEMBER))


@triton.jit
def _squares(addresses, offsets, mask, start, hyper, scale, RULES: tl.constexpr, STREAMS: tl.constexpr):
    square = RULES[0](STREAMS[1][0](addresses[1], offsets, mask, start) * scale, hyper)
    if mask is not None:
        square = tl.where(mask, square, 0.0)
    return square


@triton.jit
def factored_sums_kernel(
    table_ptr,
    tiles_ptr,
    rows_ptr,
    grads_ptr,
    words_ptr,
    workspace_ptr,
    RULES: tl.constexpr,
    STREAMS: tl.constexpr,
    TABLE_WIDTH: tl.constexpr,
    SCALARS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
    PART_ROWS: tl.constexpr,
    SOURCE: tl.constexpr,
):
    """Row and column sums of one tile of squares, each to its own place in the workspace."""
    skip = tl.load(words_ptr + 1)
    program = tl.program_id(0).to(tl.int64)
    entry, row_ptr, extent, grad = _matrix(table_ptr, tiles_ptr, grads_ptr, program, TABLE_WIDTH)
    if (skip != 0.0) | (grad == 0):
        return
    _, tile_row, tile_col = entry
    rows, cols = extent
    addresses = stream_addresses(row_ptr, grad, workspace_ptr, STREAMS)
    hyper, _ = load_row(rows_ptr, tl.load(row_ptr + MEMBER), 0, SCALARS)
    scale = tl.load(words_ptr)
    row_partials = workspace_ptr + tl.load(row_ptr + ROW_PARTIALS) + tile_col * rows
    col_partials = workspace_ptr + tl.load(row_ptr + COL_PARTIALS) + tile_row * cols
    start = tile_row * TILE_ROWS * cols + tile_col * TILE_COLS
    col = tile_col * TILE_COLS + tl.arange(0, TILE_COLS)
    full = ((tile_row + 1) * TILE_ROWS <= rows) & ((tile_col + 1) * TILE_COLS <= cols)
    if full & (tl.load(row_ptr + VECTORIZED) != 0) & (grad % ALIGNED == 0):
        row = tile_row * TILE_ROWS + tl.arange(0, TILE_ROWS)
        # A hint on `cols` itself would hold in the other branch too; the product says the same here alone.
        offsets = row[:, None] * (cols // 8 * 8) + col[None, :]
        square = _squares(addresses, offsets, None, start, hyper, scale, RULES, STREAMS)
        tl.store(row_partials + row, tl.sum(square, axis=1), mask=row < rows)
        tl.store(col_partials + col, tl.sum(square, axis=0), mask=col < cols)
    else:
        col_square = tl.zeros((PART_ROWS, TILE_COLS), dtype=tl.float32)
        for part in range(tl.cdiv(tl.minimum(rows - tile_row * TILE_ROWS, TILE_ROWS), PART_ROWS)):
            row = tile_row * TILE_ROWS + part * PART_ROWS + tl.arange(0, PART_ROWS)
            offsets = row[:, None] * cols + col[None, :]
            mask = (row < rows)[:, None] & (col < cols)[None, :]
            square = _squares(addresses, offsets, mask, start, hyper, scale, RULES, STREAMS)
            tl.store(row_partials + row, tl.sum(square, axis=1), mask=row < rows)
            col_square += square
        tl.store(col_partials + col, tl.sum(col_square, axis=0), mask=col < cols)


@triton.jit
def factored_moments_kernel(
    table_ptr,
    vectors_ptr,
    rows_ptr,
    grads_ptr,
    words_ptr,
    workspace_ptr,
    sums_ptr,
    RULES: tl.constexpr,
    STREAMS: tl.constexpr,
    TABLE_WIDTH: tl.constexpr,
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
    skip = tl.load(words_ptr + 1)
    program = tl.program_id(0).to(tl.int64)
    entry, row_ptr, extent, grad = _matrix(table_ptr, vectors_ptr, grads_ptr, program, TABLE_WIDTH)
    if (skip != 0.0) | (grad == 0):
        return
    _, side, block = entry
    rows, cols = extent
    addresses = stream_addresses(row_ptr, grad, workspace_ptr, STREAMS)
    hyper, key = load_row(rows_ptr, tl.load(row_ptr + MEMBER), tl.load(row_ptr + ORIGIN), SCALARS)
    on_rows = side == 0
    length = tl.where(on_rows, rows, cols)
    across = tl.where(on_rows, cols, rows)
    tiles = tl.where(on_rows, tl.cdiv(cols, TILE_COLS), tl.cdiv(rows, TILE_ROWS))
    partials = workspace_ptr + tl.where(on_rows, tl.load(row_ptr + ROW_PARTIALS), tl.load(row_ptr + COL_PARTIALS))
    start = block * BLOCK
    index = start + tl.arange(0, BLOCK)
    mask = index < length
    total = tl.zeros((SPLIT, BLOCK), dtype=tl.float32)
    for first in range(0, tiles, SPLIT):
        tile = first + tl.arange(0, SPLIT)
        inside = (tile < tiles)[:, None] & mask[None, :]
        total += tl.load(partials + tile[:, None] * length + index[None, :], mask=inside, other=0.0)
    mean_square = divide(tl.sum(total, axis=0), across.to(tl.float32))
    if on_rows:
        variance, factor = RULES[1](STREAMS[2][0](addresses[2], index, mask, start), mean_square, hyper)
        STREAMS[2][1](addresses[2], index, mask, start, variance, key)
    else:
        variance, factor = RULES[1](STREAMS[3][0](addresses[3], index, mask, start), mean_square, hyper)
        STREAMS[3][1](addresses[3], index, mask, start, variance, key)
    tl.store(partials + index, factor, mask=mask)
    tl.store(sums_ptr + program, tl.sum(tl.where(mask, variance, 0.0), axis=0))


@triton.jit
def _part_step(
    addresses,
    offsets,
    mask,
    start,
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
    param = STREAMS[0][0](addresses[0], offsets, mask, start)
    grad = STREAMS[1][0](addresses[1], offsets, mask, start) * scale
    direction = RULES[2](grad, factors[0], factors[1], factors[2], hyper)
    if UPDATE:
        param = RULES[3](param, direction, totals[0], totals[1], totals[2], hyper)
        STREAMS[0][1](addresses[0], offsets, mask, start, param, key)
    elif mask is not None:
        direction = tl.where(mask, direction, 0.0)
    return direction * direction, param * param


@triton.jit
def factored_step_kernel(
    table_ptr,
    tiles_ptr,
    rows_ptr,
    grads_ptr,
    words_ptr,
    workspace_ptr,
    row_sums_ptr,
    sums_ptr,
    RULES: tl.constexpr,
    STREAMS: tl.constexpr,
    TABLE_WIDTH: tl.constexpr,
    SCALARS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
    PART_ROWS: tl.constexpr,
    UPDATE: tl.constexpr,
    SOURCE: tl.constexpr,
):
    """One tile: its sums of u² and θ² into `sums` [programs, 2], or with UPDATE the new θ from `sums` [tensors, 2]."""
    skip = tl.load(words_ptr + 1)
    program = tl.program_id(0).to(tl.int64)
    entry, row_ptr, extent, grad = _matrix(table_ptr, tiles_ptr, grads_ptr, program, TABLE_WIDTH)
    if (skip != 0.0) | (grad == 0):
        return
    tensor, tile_row, tile_col = entry
    rows, cols = extent
    addresses = stream_addresses(row_ptr, grad, workspace_ptr, STREAMS)
    hyper, key = load_row(rows_ptr, tl.load(row_ptr + MEMBER), tl.load(row_ptr + ORIGIN), SCALARS)
    scale = tl.load(words_ptr)
    row_mean = divide(tl.load(row_sums_ptr + tensor), rows.to(tl.float32))
    totals = (0.0, 0.0, 0.0)
    if UPDATE:
        numel = (rows * cols).to(tl.float32)
        totals = (tl.load(sums_ptr + 2 * tensor), tl.load(sums_ptr + 2 * tensor + 1), numel)
    row_factors = workspace_ptr + tl.load(row_ptr + ROW_PARTIALS)
    col_factors = workspace_ptr + tl.load(row_ptr + COL_PARTIALS)
    col = tile_col * TILE_COLS + tl.arange(0, TILE_COLS)
    in_cols = col < cols
    start = tile_row * TILE_ROWS * cols + tile_col * TILE_COLS
    col_factor = tl.load(col_factors + col, mask=in_cols, other=0.0)
    full = ((tile_row + 1) * TILE_ROWS <= rows) & ((tile_col + 1) * TILE_COLS <= cols)
    if full & (tl.load(row_ptr + VECTORIZED) != 0) & (grad % ALIGNED == 0):
        direction_sq = tl.zeros((PART_ROWS, TILE_COLS), dtype=tl.float32)
        param_sq = direction_sq
        for part in range(TILE_ROWS // PART_ROWS):
            row = tile_row * TILE_ROWS + part * PART_ROWS + tl.arange(0, PART_ROWS)
            row_factor = tl.load(row_factors + row, mask=row < rows, other=0.0)
            offsets = row[:, None] * (cols // 8 * 8) + col[None, :]
            run_cols = tile_col * TILE_COLS + tl.arange(0, TILE_COLS // 8) * 8
            runs = tl.reshape(row[:, None] * cols + run_cols[None, :], (PART_ROWS * (TILE_COLS // 8),))
            factors = (row_factor[:, None], col_factor[None, :], row_mean)
            first = start + part * PART_ROWS * cols
            squares = _part_step(
                addresses, offsets, None, first, factors, totals, hyper, scale, key + (runs,), RULES, STREAMS, UPDATE
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
            first, line_key = start + line * cols, key + (offsets,)
            squares = _part_step(
                addresses, offsets, mask, first, factors, totals, hyper, scale, line_key, RULES, STREAMS, UPDATE
            )
            if not UPDATE:
                direction_sq += squares[0]
                param_sq += squares[1]
        direction_sq = tl.sum(direction_sq)
        param_sq = tl.sum(param_sq)
    if not UPDATE:
        tl.store(sums_ptr + 2 * program, direction_sq)
        tl.store(sums_ptr + 2 * program + 1, param_sq)


@functools.cache
def constants(spec: FactoredSpec, codecs: tuple[Codec, ...]) -> dict[str, dict[str, Any]]:
    """The compile-time arguments of each launch, by name, in order, but for the two of `finish_sums_kernel`."""
    streams, width = streams_of(spec, codecs, len(COLUMNS))
    rules = (spec.square, spec.accumulate, spec.direction, spec.update)
    common = {
        "RULES": rules,
        "STREAMS": streams,
        "TABLE_WIDTH": width,
        "SCALARS": len(spec.row.names),
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
