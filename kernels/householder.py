"""Orthogonal factors by Householder reflections, for the matrices of a batch on which something faster has failed."""

from __future__ import annotations

from .language import tl, triton
from .tiles import MATRIX_OPTIONS

LAUNCH_OPTIONS = {"num_warps": 8, "num_stages": 1, **MATRIX_OPTIONS}
CONSTANTS = {"COLUMN": 1024, "TILE_ROWS": 16, "TILE_COLS": 128}
# Of a column scaled to a largest entry of 1: below it, what lies under the diagonal is lost in float32's last bit.
NEGLIGIBLE = tl.constexpr(1e-30)


@triton.jit
def _reflector(column_ptr, size, j, COLUMN: tl.constexpr):
    """Overwrites a column x from the diagonal down with v, ‖v‖² = 2 or v = 0, such that (I − vvᵀ)x = ‖x‖e₁.

    v₁ = x₁ − ‖x‖ before scaling, as −σ/(x₁ + ‖x‖) where the difference would cancel; σ = Σ of squares below x₁.
    """
    lanes = tl.arange(0, COLUMN)
    largest = tl.zeros((COLUMN,), dtype=tl.float32)
    for first in range(j, size, COLUMN):
        row = first + lanes
        x = tl.load(column_ptr + row * size, mask=row < size, other=0.0)
        largest = tl.maximum(largest, tl.abs(x))
    scale = tl.max(largest, axis=0)
    scale = tl.where(scale > 0.0, scale, 1.0)
    squares = tl.zeros((COLUMN,), dtype=tl.float32)
    for first in range(j, size, COLUMN):
        row = first + lanes
        below = (row > j) & (row < size)
        x = tl.load(column_ptr + row * size, mask=below, other=0.0) / scale
        squares += x * x
    sigma = tl.sum(squares, axis=0)
    head = tl.load(column_ptr + j * size) / scale
    sigma = tl.where(sigma < NEGLIGIBLE, 0.0, sigma)
    norm = tl.sqrt_rn(head * head + sigma)
    total = head + norm
    v_head = tl.where(head <= 0.0, head - norm, -sigma / tl.where(head > 0.0, total, 1.0))
    length = sigma + v_head * v_head
    factor = tl.where(length > 0.0, tl.sqrt_rn(2.0 / tl.where(length > 0.0, length, 1.0)), 0.0)
    tail = tl.where(sigma > 0.0, factor, 0.0)
    tl.debug_barrier()  # all threads have read x₁
    for first in range(j, size, COLUMN):
        row = first + lanes
        places = column_ptr + row * size
        x = tl.load(places, mask=row < size, other=0.0) / scale
        tl.store(places, tl.where(row == j, v_head * factor, x * tail), mask=row < size)


@triton.jit
def _reflect(matrix_ptr, size, j, first_row, TILE_ROWS: tl.constexpr, TILE_COLS: tl.constexpr):
    """Multiplies the columns right of j by I − vvᵀ, v being column j from the diagonal down.

    Rows before `first_row` count as zero.
    """
    for left in range((j + 1) // TILE_COLS * TILE_COLS, size, TILE_COLS):
        col = left + tl.arange(0, TILE_COLS)
        right = (col > j) & (col < size)
        products = tl.zeros((TILE_ROWS, TILE_COLS), dtype=tl.float32)
        for top in range(first_row, size, TILE_ROWS):
            row = top + tl.arange(0, TILE_ROWS)
            starts = matrix_ptr + row * size
            v = tl.load(starts + j, mask=row < size, other=0.0)
            inside = (row < size)[:, None] & right[None, :]
            products += v[:, None] * tl.load(starts[:, None] + col[None, :], mask=inside, other=0.0)
        along = tl.sum(products, axis=0)
        for top in range(j, size, TILE_ROWS):
            row = top + tl.arange(0, TILE_ROWS)
            starts = matrix_ptr + row * size
            v = tl.load(starts + j, mask=row < size, other=0.0)
            inside = (row < size)[:, None] & right[None, :]
            places = starts[:, None] + col[None, :]
            value = tl.load(places, mask=inside & (row >= first_row)[:, None], other=0.0)
            tl.store(places, value - v[:, None] * along[None, :], mask=inside)


@triton.jit
def _unit_column(column_ptr, size, j, COLUMN: tl.constexpr):
    """Overwrites v from the diagonal down with (I − vvᵀ)e₁."""
    head = tl.load(column_ptr + j * size)
    tl.debug_barrier()  # all threads have read v₁, and v for the columns to its right
    for first in range(j, size, COLUMN):
        row = first + tl.arange(0, COLUMN)
        places = column_ptr + row * size
        v = tl.load(places, mask=row < size, other=0.0)
        tl.store(places, tl.where(row == j, 1.0, 0.0) - v * head, mask=row < size)


@triton.jit(do_not_specialize=["size"])
def householder_kernel(
    matrices_ptr, failed_ptr, size, COLUMN: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLS: tl.constexpr
):
    """Replaces each S = QR of float32 [B, size, size] whose `failed` int32 [B] is not 0 by Q; a program a matrix.

    Vⱼ = I − vⱼvⱼᵀ, chosen such that V₀ … Vₘ₋₁ applied in turn make S upper triangular with a diagonal ≥ 0;
    Q = V₀V₁ … Vₘ₋₁, formed from the last to the first in the place of the vⱼ.

    Where the rank is deficient, Q is orthogonal all the same: a column without anything left gives v = 0.

    Source: Golub & Van Loan, Matrix Computations, 4th ed., algorithms 5.1.1 and 5.2.1, section 5.1.6; v is scaled to
    ‖v‖² = 2 here, which does not underflow where v₁ is tiny.
    """
    program = tl.program_id(0).to(tl.int64)
    size = size.to(tl.int64)
    if tl.load(failed_ptr + program) == 0:
        return
    matrix_ptr = matrices_ptr + program * size * size
    for j in range(0, size):
        _reflector(matrix_ptr + j, size, j, COLUMN)
        tl.debug_barrier()
        _reflect(matrix_ptr, size, j, j, TILE_ROWS, TILE_COLS)
        tl.debug_barrier()
    for done in range(0, size):
        j = size - 1 - done
        _reflect(matrix_ptr, size, j, j + 1, TILE_ROWS, TILE_COLS)
        _unit_column(matrix_ptr + j, size, j, COLUMN)
        tl.debug_barrier()
