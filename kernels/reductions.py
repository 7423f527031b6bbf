"""Sums over tensors in a fixed order: per-block partials from the driver, finished here; no atomics.

Beside them the rule that turns the driver into a multi-tensor norm.
"""

from __future__ import annotations

from .arithmetic import is_finite
from .language import tl, triton
from .spec import Pass, Row, RuleSpec

FINISH_BLOCK = 1024
MOST_ROWS = 8 * FINISH_BLOCK  # that one program adds up, one block after the other


@triton.jit(do_not_specialize_on_alignment=["sums_ptr"])  # it may lie anywhere among those of other tensors
def finish_sums_kernel(partials_ptr, ranges_ptr, sums_ptr, SUMS: tl.constexpr, BLOCK: tl.constexpr):
    """Adds the rows [first, last) of `partials` [rows, SUMS] named by `ranges` int64 [programs, 2], in float64.

    `partials` and `sums` [programs, SUMS] are float32, or float64 where sums of sums are between them.
    """
    program = tl.program_id(0).to(tl.int64)
    first = tl.load(ranges_ptr + 2 * program)
    last = tl.load(ranges_ptr + 2 * program + 1)
    lanes = tl.arange(0, BLOCK)
    for i in tl.static_range(SUMS):
        total = tl.zeros((BLOCK,), dtype=tl.float64)
        for row in range(first, last, BLOCK):
            rows = row + lanes
            total += tl.load(partials_ptr + rows * SUMS + i, mask=rows < last, other=0.0).to(tl.float64)
        tl.store(sums_ptr + program * SUMS + i, tl.sum(total, axis=0).to(sums_ptr.dtype.element_ty))


@triton.jit
def finite_square_rule(param, grad, state, hyper):
    """g² where g is finite, and 1 where it is not."""
    finite = is_finite(grad)
    square = tl.where(finite, grad * grad, 0.0)
    return param, state, (square, tl.where(finite, 0.0, 1.0))


SQUARED_NORM = RuleSpec(
    "squared_norm",
    slots=(),
    passes=(Pass(finite_square_rule, writes=(), sums=2, reads=("grad",)),),
    row=Row(()),
    offsets=(("param", "grad"),),  # nothing but the gradient is read
)
