"""The scalars of a step, on the device: a row a tensor, from its own step count and its group's hyperparameters.

Computed in float64 from float64 hyperparameters and stored as float32, equal to the bit to what the host would compute.

Tables, all on the device (built by `rlx_gpu.engine.rows`):
    table   int64 [tensors, columns]: MEMBER (place in `grads` and `rows`), GROUP, LR_SCALE (float64 bits), then the
            addresses of the step count (float32) and of the counters (float64).
    hypers  float64 [groups, hypers + 1]: lr and what else `Row.hypers` lists, then the seed as int64 bits.
    rows    float32 [members, ROW_WIDTH]: written here.
    grads, words: as in `elementwise`; the step of a tensor without a gradient stands still.
"""

from __future__ import annotations

import functools
from typing import Any

from .elementwise import source_hash
from .language import tl, triton
from .spec import KEY, ROW_WIDTH, FactoredSpec, MatrixSpec, RuleSpec

BLOCK = 128
COLUMNS = ("member", "group", "lr_scale")
MEMBER, GROUP, LR_SCALE = (tl.constexpr(COLUMNS.index(name)) for name in COLUMNS)
FIRST_COUNTER = tl.constexpr(len(COLUMNS))  # the step, then the others
FIRST_KEY = tl.constexpr(ROW_WIDTH - len(KEY))
WIDTH = tl.constexpr(ROW_WIDTH)


@triton.jit(do_not_specialize=["count"])
def rows_kernel(
    table_ptr,
    grads_ptr,
    hypers_ptr,
    words_ptr,
    rows_ptr,
    count,
    SCALARS_OF: tl.constexpr,
    HYPERS: tl.constexpr,
    COUNTERS: tl.constexpr,
    SCALARS: tl.constexpr,
    ADVANCE: tl.constexpr,
    BLOCK: tl.constexpr,
    SOURCE: tl.constexpr,
):
    """The rows of BLOCK tensors; with ADVANCE their steps are counted. A skipped step writes nothing."""
    if tl.load(words_ptr + 1) != 0.0:
        return
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    entry_ptr = table_ptr + index * (FIRST_COUNTER + 1 + COUNTERS)
    member = tl.load(entry_ptr + MEMBER, mask=index < count, other=0)
    mask = (index < count) & (tl.load(grads_ptr + member, mask=index < count, other=0) != 0)
    group_ptr = hypers_ptr + tl.load(entry_ptr + GROUP, mask=mask, other=0) * (HYPERS + 1)
    lr_scale = tl.load(entry_ptr + LR_SCALE, mask=mask, other=0).to(tl.float64, bitcast=True)
    hyper = (tl.load(group_ptr, mask=mask, other=0.0) * lr_scale,)
    for i in tl.static_range(1, HYPERS):
        hyper = hyper + (tl.load(group_ptr + i, mask=mask, other=0.0),)
    step_ptr = tl.load(entry_ptr + FIRST_COUNTER, mask=mask, other=0).to(tl.pointer_type(tl.float32))
    step = tl.load(step_ptr, mask=mask, other=1.0)
    if ADVANCE:
        step += 1.0
        tl.store(step_ptr, step, mask=mask)
    counters = ()
    for i in tl.static_range(COUNTERS):
        counter_ptr = tl.load(entry_ptr + FIRST_COUNTER + 1 + i, mask=mask, other=0).to(tl.pointer_type(tl.float64))
        counters = counters + (tl.load(counter_ptr, mask=mask, other=1.0),)
    row, counters = SCALARS_OF(hyper, step.to(tl.float64), counters)
    tl.static_assert(len(row) == SCALARS, "the row has another length than its names")
    if ADVANCE:
        for i in tl.static_range(COUNTERS):
            counter_ptr = tl.load(entry_ptr + FIRST_COUNTER + 1 + i, mask=mask, other=0).to(tl.pointer_type(tl.float64))
            tl.store(counter_ptr, counters[i], mask=mask)
    row_ptr = rows_ptr + member * WIDTH
    for i in tl.static_range(SCALARS):
        tl.store(row_ptr + i, row[i].to(tl.float32), mask=mask)
    key_ptr = (row_ptr + FIRST_KEY).to(tl.pointer_type(tl.int32), bitcast=True)
    seed = tl.load(group_ptr + HYPERS, mask=mask, other=0.0).to(tl.int64, bitcast=True)
    tl.store(key_ptr, step.to(tl.int32), mask=mask)
    tl.store(key_ptr + 1, seed.to(tl.int32), mask=mask)
    tl.store(key_ptr + 2, (seed >> 32).to(tl.int32), mask=mask)


@functools.cache
def constants(spec: RuleSpec | FactoredSpec | MatrixSpec, hypers: int, advance: bool) -> dict[str, Any]:
    """The compile-time arguments of `rows_kernel` for a rule, of as many hyperparameters as `Row.hypers` returns."""
    return {
        "SCALARS_OF": spec.row.scalars,
        "HYPERS": hypers,
        "COUNTERS": len(spec.counters),
        "SCALARS": len(spec.row.names),
        "ADVANCE": advance,
        "BLOCK": BLOCK,
        "SOURCE": source_hash(spec.row.scalars),
    }
