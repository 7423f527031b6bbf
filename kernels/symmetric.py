"""Symmetric products of batches of matrices, αXYᵀ + βC: the lower triangle is computed, and mirrored."""

from __future__ import annotations

from .language import tl, triton
from .tiles import hinted, stride, tile_product


@triton.jit
def _triangle(index):
    """Row and column of an entry of the lower triangle, counted row by row."""
    # In float32 the root is at most one row off.
    row = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > index, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= index, row + 1, row)
    return row, index - row * (row + 1) // 2


@triton.jit
def _grouped_triangle(index, tiles, GROUP: tl.constexpr):
    """As `_triangle`, but column by column within GROUP rows, so that neighbours in time share what they read."""
    row, _ = _triangle(index)
    first = row // GROUP * GROUP
    height = tl.minimum(GROUP, tiles - first)
    index -= first * (first + 1) // 2
    inner_row, inner_col = _triangle(tl.maximum(index - height * first, 0))
    left = index < height * first
    row = tl.where(left, index % height, inner_row)
    col = tl.where(left, index // height, first + inner_col)
    return first + row, col


@triton.jit(
    do_not_specialize=[
        "rows", "inner", "tiles", "x_batch", "x_row", "x_col", "c_batch", "c_row", "out_batch", "out_row"
    ]
)  # fmt: skip
def symmetric_product_kernel(
    x_ptr,
    y_ptr,
    c_ptr,
    out_ptr,
    rows,
    inner,
    tiles,
    x_batch,
    x_row,
    x_col,
    c_batch,
    c_row,
    out_batch,
    out_row,
    alpha,
    beta,
    HAS_C: tl.constexpr,
    UNIT: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of αXYᵀ + βC and its mirror image; X, Y [B, rows, inner], XYᵀ, C and out [B, rows, rows], symmetric.

    A program a tile of the lower triangle of each matrix. `out` may be C: a tile reads the part of C below the diagonal
    that it alone writes. The result is symmetric to the last bit.

    Args:
        x_batch, x_row, x_col: strides of X and of Y.
        UNIT: which of them is 1, "rows" or "cols", all others and the sizes being multiples of 8; or "none".
        WHOLE: `rows` is a multiple of BLOCK, and `inner` of DEPTH.
    """
    HINT: tl.constexpr = UNIT != "none"
    program = tl.program_id(0)
    per_matrix = tiles * (tiles + 1) // 2
    batch = (program // per_matrix).to(tl.int64)
    tile_row, tile_col = _grouped_triangle(program % per_matrix, tiles, GROUP)
    rows = hinted(rows, HINT)
    inner = hinted(inner, HINT)
    x_row = stride(x_row, UNIT == "rows", HINT)
    x_col = stride(x_col, UNIT == "cols", HINT)
    x_start = batch * stride(x_batch, False, HINT)
    i = tile_row * BLOCK + tl.arange(0, BLOCK)
    j = tile_col * BLOCK + tl.arange(0, BLOCK)
    # Wrapped into the matrix: what is loaded so needs no mask, and what comes of it is not stored.
    x_i = i if WHOLE else i % rows
    x_j = j if WHOLE else j % rows
    sums = tile_product(x_ptr + x_start, y_ptr + x_start, x_row, x_col, x_i, x_j, inner, BLOCK, DEPTH, WHOLE)
    value = alpha * sums
    mask = None if WHOLE else (i < rows)[:, None] & (j < rows)[None, :]
    if HAS_C:
        c_ptr += batch * stride(c_batch, False, HINT)
        places = i[:, None] * stride(c_row, False, HINT) + j[None, :]
        value += beta * tl.load(c_ptr + places, mask=mask).to(tl.float32)
    value = value.to(out_ptr.dtype.element_ty)
    out_ptr += batch * stride(out_batch, False, HINT)
    out_row = stride(out_row, False, HINT)
    # Transposed in each branch by itself, lest both tiles lie in registers at once.
    if tile_row == tile_col:  # the two sides of the diagonal were not summed in the same order
        value = tl.where(i[:, None] >= j[None, :], value, tl.trans(value))
    else:
        mirrored = None if WHOLE else (j < rows)[:, None] & (i < rows)[None, :]
        tl.store(out_ptr + (j[:, None] * out_row + i[None, :]), tl.trans(value), mask=mirrored)
    tl.store(out_ptr + (i[:, None] * out_row + j[None, :]), value, mask=mask)
