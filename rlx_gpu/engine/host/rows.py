"""The host's form of `rlx_gpu.kernels.rows`: a row of float64 numbers a tensor."""

from __future__ import annotations

from typing import Any

from ...kernels.rows import BLOCK, COLUMNS
from .build import address_of
from .loops import row_function
from .native import call, float32, float64, int64, pointer
from .programs import NUMBERS, ONE_NUMBER, SEED_WORD, SKIP, SLOTS, STEP_WORD, WIDTH, Job, words

GRAIN = 2
MEMBER, GROUP, LR_SCALE = (COLUMNS.index(name) for name in COLUMNS)
FIRST_COUNTER = len(COLUMNS)
TABLE, GRADS, HYPERS_AT, WORDS, ROWS, COUNT, HYPERS, COUNTERS, ADVANCE, FUNCTION_AT = range(10)


def rows_kernel(*tensors: Any, SCALARS_OF: Any, HYPERS: int, COUNTERS: int, SCALARS: int, **constants: Any) -> Job:
    """The rows of all tensors; the arguments are the kernel's."""
    function = row_function(SCALARS_OF, HYPERS, COUNTERS, SCALARS)
    own = words(*tensors, HYPERS, COUNTERS, constants["ADVANCE"], function)
    return Job(address_of(compute_rows), own, GRAIN)


def compute_rows(arguments_at: int, program: int, end: int, memory: int) -> None:
    """The blocks of rows from one program to another. A skipped step writes nothing."""
    arguments = pointer(arguments_at, int64)
    if pointer(arguments[WORDS], float64)[SKIP] != 0.0:
        return
    hypers, counters, advance = arguments[HYPERS], arguments[COUNTERS], arguments[ADVANCE]
    grads = pointer(arguments[GRADS], int64)
    hyper, own = pointer(memory + NUMBERS, float64), pointer(memory + SLOTS, float64)
    number = pointer(memory + ONE_NUMBER, float64)
    for index in range(program * BLOCK, min(end * BLOCK, arguments[COUNT])):
        entry_at = arguments[TABLE] + index * (FIRST_COUNTER + 1 + counters) * 8
        entry = pointer(entry_at, int64)
        member = entry[MEMBER]
        if grads[member] == 0:
            continue
        group_at = arguments[HYPERS_AT] + entry[GROUP] * (hypers + 1) * 8
        given = pointer(group_at, float64)
        hyper[0] = given[0] * pointer(entry_at, float64)[LR_SCALE]
        for i in range(1, hypers):
            hyper[i] = given[i]
        count = pointer(entry[FIRST_COUNTER], float32)
        step = count[0] + float32(1.0) if advance != 0 else count[0]
        for i in range(counters):
            own[i] = pointer(entry[FIRST_COUNTER + 1 + i], float64)[0]
        number[0] = float64(step)
        row_at = arguments[ROWS] + member * WIDTH * 8
        call(arguments[FUNCTION_AT], memory + NUMBERS, memory + ONE_NUMBER, memory + SLOTS, row_at)
        if advance != 0:
            count[0] = step
            for i in range(counters):
                pointer(entry[FIRST_COUNTER + 1 + i], float64)[0] = own[i]
        key = pointer(row_at, int64)
        key[STEP_WORD], key[SEED_WORD] = int64(step), pointer(group_at, int64)[hypers]
