"""Sums over tensors in a fixed order: per-block partials from the driver, finished here; no atomics.

Beside them the rule that turns the driver into a multi-tensor norm, and the kernel that turns the norm into the
`control` words which every step reads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import is_finite
from .spec import Pass, RuleSpec

FINISH_BLOCK = 1024


@triton.jit
def finish_sums_kernel(partials_ptr, ranges_ptr, sums_ptr, SUMS: tl.constexpr, BLOCK: tl.constexpr):
    """Adds the rows [first, last) of `partials` [rows, SUMS] named by `ranges` int64 [programs, 2], in float64."""
    program = tl.program_id(0).to(tl.int64)
    first = tl.load(ranges_ptr + 2 * program)
    last = tl.load(ranges_ptr + 2 * program + 1)
    lanes = tl.arange(0, BLOCK)
    for i in tl.static_range(SUMS):
        total = tl.zeros((BLOCK,), dtype=tl.float64)
        for row in range(first, last, BLOCK):
            rows = row + lanes
            total += tl.load(partials_ptr + rows * SUMS + i, mask=rows < last, other=0.0).to(tl.float64)
        tl.store(sums_ptr + program * SUMS + i, tl.sum(total, axis=0).to(tl.float32))


@triton.jit
def finite_square_rule(param, grad, state, hyper):
    """g² where g is finite, and 1 where it is not."""
    finite = is_finite(grad)
    square = tl.where(finite, grad * grad, 0.0)
    return param, state, (square, tl.where(finite, 0.0, 1.0))


SQUARED_NORM = RuleSpec(
    "squared_norm",
    slots=(),
    passes=(Pass(finite_square_rule, writes=(), sums=2),),
    scalars=lambda hyper, step, counters: (),
)


@triton.jit(do_not_specialize=["known"])
def guard_kernel(sums_ptr, control_ptr, skipped_ptr, known):
    """Makes the step a no-op if any gradient entry was not finite, and counts the steps skipped.

    `sums_ptr` float32 [2] holds the squared norm and the number of entries that are not finite; `known` is how many of
    the steps in `skipped_ptr` int32 [1] the host had heard of when it prepared the rows of this step.
    """
    skipped = tl.load(skipped_ptr)
    bad = (tl.load(sums_ptr + 1) > 0.0).to(tl.int32)
    tl.store(control_ptr + 1, bad.to(tl.float32))
    tl.store(control_ptr + 2, (skipped - known).to(tl.float32))
    tl.store(skipped_ptr, skipped + bad)
