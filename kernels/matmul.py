"""Products of batches of float32 matrices on the tensor cores, at float32's accuracy."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import hinted, stride, tile_lanes, tile_product, wrapped


@triton.jit
def _grouped(index, tile_rows, tile_cols, GROUP: tl.constexpr):
    """Row and column of a tile: column by column within GROUP rows, so that neighbours in time share what they read."""
    first = index // (GROUP * tile_cols) * GROUP
    height = tl.minimum(GROUP, tile_rows - first)
    index -= first * tile_cols
    return first + index % height, index // height


@triton.jit(
    do_not_specialize=[
        "rows", "cols", "inner", "tile_rows", "tile_cols", "a_batch", "a_row", "a_col", "b_batch", "b_row", "b_col",
        "out_batch", "out_row",
    ]
)  # fmt: skip
def matmul_kernel(
    a_ptr,
    b_ptr,
    out_ptr,
    rows,
    cols,
    inner,
    tile_rows,
    tile_cols,
    a_batch,
    a_row,
    a_col,
    b_batch,
    b_row,
    b_col,
    out_batch,
    out_row,
    A_UNIT: tl.constexpr,
    B_UNIT: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of AB; A [B, rows, inner], B [B, inner, cols], out [B, rows, cols]. A program a tile of each matrix.

    Args:
        A_UNIT, B_UNIT: which stride is 1, "rows" or "cols", all others and the sizes being multiples of 8; or "none".
        WHOLE: `rows` and `cols` are multiples of BLOCK, and `inner` of DEPTH.
    """
    HINT: tl.constexpr = A_UNIT != "none" and B_UNIT != "none"
    program = tl.program_id(0)
    per_matrix = tile_rows * tile_cols
    batch = (program // per_matrix).to(tl.int64)
    tile_row, tile_col = _grouped(program % per_matrix, tile_rows, tile_cols, GROUP)
    rows = hinted(rows, HINT)
    cols = hinted(cols, HINT)
    a_row, a_col = stride(a_row, A_UNIT == "rows", HINT), stride(a_col, A_UNIT == "cols", HINT)
    b_row, b_col = stride(b_row, B_UNIT == "rows", HINT), stride(b_col, B_UNIT == "cols", HINT)
    a_ptr += batch * stride(a_batch, False, HINT)
    b_ptr += batch * stride(b_batch, False, HINT)
    i, j = tile_lanes(tile_row, BLOCK), tile_lanes(tile_col, BLOCK)
    a_i, b_j = wrapped(i, rows, WHOLE), wrapped(j, cols, WHOLE)
    inner = hinted(inner, HINT)
    value = tile_product(a_ptr, a_row, a_col, b_ptr, b_row, b_col, a_i, b_j, inner, BLOCK, DEPTH, WHOLE)
    out_ptr += batch * stride(out_batch, False, HINT)
    mask = None if WHOLE else (i < rows)[:, None] & (j < cols)[None, :]
    tl.store(out_ptr + (i[:, None] * stride(out_row, False, HINT) + j[None, :]), value, mask=mask)
