"""The host's form of `rlx_gpu.kernels.elementwise`: the same tables and arguments, larger blocks.

Numbers of float32, of the plain 16-bit formats or, under a rule in float64, float64 are stepped where they are, whole
blocks at a time. Others are converted piece by piece into memory that stays in the nearest cache, stepped there and
converted back.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ...kernels.elementwise import COLUMNS
from .build import address_of
from .codecs import PIECE, SLOT
from .loops import rule_loop
from .native import call, float64, int32, int64, pointer
from .programs import (
    NUMBERS,
    POINTERS,
    SCALE,
    SKIP,
    SLOTS,
    WIDTH,
    Job,
    copy_row,
    direct_formats,
    is_double,
    load_piece,
    open_streams,
    set_key,
    store_piece,
    stream_table,
    words,
)

GRAIN = 4
NUMEL, MEMBER, ORIGIN = (COLUMNS.index(name) for name in ("numel", "member", "origin"))
# The arguments of a program: what the kernel takes, then its constants, and the compiled loop.
TABLE, CHUNKS, ROWS, GRADS, WORDS, WORKSPACE, SUMS, PARTIALS = range(8)
STREAMS_AT, COUNT, TABLE_WIDTH, SCALARS, SUMS_IN, SUMS_OUT, BLOCK, STRIDE, LOOP = range(8, 17)


def fused_step_kernel(*tensors: Any, RULE: Any, STREAMS: Any, TABLE_WIDTH: int, **constants: Any) -> Job:
    """Any rule over any storage; the arguments are the kernel's."""
    sizes = tuple(constants[name] for name in ("SCALARS", "SUMS_IN", "SUMS_OUT", "BLOCK"))
    streams, stride, loop = _prepared(RULE, STREAMS, *sizes)
    own = words(*tensors, streams.ctypes.data, len(streams), TABLE_WIDTH, *sizes, stride, loop)
    return Job(address_of(step_blocks), own, GRAIN)


@functools.cache
def _prepared(
    rule: Any, streams: Any, scalars: int, sums_in: int, sums_out: int, block: int
) -> tuple[np.ndarray[Any, Any], int, int]:
    """The streams' table, how many elements are stepped at a time, and the compiled loop."""
    double = is_double(streams)
    direct = direct_formats(streams, double)
    table = stream_table(streams, double, direct)
    written = tuple(bool(stream[4]) for stream in streams)
    numbers = scalars + (sums_in + 1 if sums_in else 0)
    loop = rule_loop(rule, direct, written, numbers, sums_out, double)
    converted = bool(table[:, :2].any())
    return table, PIECE if converted or sums_out else block, loop


def step_blocks(arguments_at: int, program: int, end: int, memory: int) -> None:
    """The blocks from one program to another."""
    arguments = pointer(arguments_at, int64)
    table, chunks = arguments[TABLE], pointer(arguments[CHUNKS], int32)
    grads, factors = pointer(arguments[GRADS], int64), pointer(arguments[WORDS], float64)
    streams, count = pointer(arguments[STREAMS_AT], int64), arguments[COUNT]
    scalars, sums_in, sums_out = arguments[SCALARS], arguments[SUMS_IN], arguments[SUMS_OUT]
    block, stride = arguments[BLOCK], arguments[STRIDE]
    pointers = pointer(memory + POINTERS, int64)
    for current in range(program, end):
        tensor = int64(chunks[2 * current])
        entry = pointer(table + tensor * arguments[TABLE_WIDTH] * 8, int64)
        partials_at = arguments[PARTIALS] + current * sums_out * 8
        partials = pointer(partials_at, float64)
        for i in range(sums_out):
            partials[i] = 0.0
        grad = grads[entry[MEMBER]]
        if factors[SKIP] != 0.0 or grad == 0:
            continue
        open_streams(memory, streams, count, entry, grad, arguments[WORKSPACE])
        row = arguments[ROWS] + entry[MEMBER] * WIDTH * 8
        set_key(memory, count, row, entry[ORIGIN])
        numbers, known = copy_row(memory, row, scalars), scalars
        if sums_in > 0:
            sums = pointer(arguments[SUMS] + tensor * sums_in * 8, float64)
            for i in range(sums_in):
                numbers[known + i] = sums[i]
            numbers[known + sums_in] = float64(entry[NUMEL])
            known += sums_in + 1
        numbers[known] = factors[SCALE]
        first = int64(chunks[2 * current + 1]) * block
        last = min(first + block, entry[NUMEL])
        for start in range(first, last, stride):
            length = min(stride, last - start)
            for k in range(count):
                pointers[k] = load_piece(memory, streams, k, start, length)
            for i in range(sums_out):
                pointers[count + i] = memory + SLOTS + (count + i) * SLOT
            call(arguments[LOOP], memory + POINTERS, memory + NUMBERS, length, partials_at)
            for k in range(count):
                store_piece(memory, streams, k, start, length)
