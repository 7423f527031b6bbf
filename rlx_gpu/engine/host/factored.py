"""The host's form of `rlx_gpu.kernels.factored`: the same tables and arguments, row after row of wider tiles.

Sums, means and factors of the workspace are float64. The factors of a block of rows or columns lie where the sums of
its first tile did, as on a GPU.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit

from ...kernels.codecs import load_float64, store_float64
from ...kernels.factored import COLUMNS
from ..portions import HOST
from .build import address_of
from .codecs import BUFFERS, SLOT, STREAM_WORDS, codec_function
from .loops import moments_loop, norms_loop, square_loop, sum_function, update_loop
from .native import call, float64, int32, int64, pointer
from .programs import (
    NUMBERS,
    ONE_NUMBER,
    POINTERS,
    SCALE,
    SKIP,
    SLOTS,
    STREAMS,
    WIDTH,
    Job,
    copy_row,
    is_double,
    load_piece,
    open_streams,
    set_key,
    store_piece,
    stream_table,
    words,
)

GRAIN = 1
TILE_ROWS, TILE_COLS, VECTOR_BLOCK = HOST.tile_rows, HOST.tile_cols, HOST.vector_block
ROWS, COLS, ROW_PARTIALS, COL_PARTIALS, MEMBER, ORIGIN = (
    COLUMNS.index(name) for name in ("rows", "cols", "row_partials", "col_partials", "member", "origin")
)
PARAM, GRAD, ROW_VAR, COL_VAR = range(4)  # the streams
# The arguments of a program: what the kernels take, their constants, two sums, the compiled loop, which
# it is, what converts numbers of the workspace, and what adds up.
TABLE, ENTRIES, ROWS_AT, GRADS, WORDS, WORKSPACE = range(6)
STREAMS_AT, COUNT, TABLE_WIDTH, SCALARS, ROW_SUMS, SUMS, LOOP, UPDATE, CONVERT, ADD = range(6, 16)


def factored_sums_kernel(*tensors: Any, **constants: Any) -> Job:
    """Row and column sums of squares; the arguments are the kernel's."""
    streams, double = _streams(constants["STREAMS"], (GRAD,), ())
    loop = square_loop(constants["RULES"][0], constants["SCALARS"], double)
    return _job(sum_tiles, tensors, constants, streams, double, (0, 0), loop, store_float64)


def factored_moments_kernel(*tensors: Any, **constants: Any) -> Job:
    """The variances of rows and columns, and their factors; the arguments are the kernel's."""
    streams, double = _streams(constants["STREAMS"], (ROW_VAR, COL_VAR), (ROW_VAR, COL_VAR))
    loop = moments_loop(constants["RULES"][1], constants["SCALARS"], double)
    return _job(step_vectors, tensors[:-1], constants, streams, double, (0, tensors[-1]), loop)


def factored_step_kernel(*tensors: Any, **constants: Any) -> Job:
    """The sums of u² and θ², or the new θ; the arguments are the kernel's."""
    _, _, direction, update = constants["RULES"]
    streams, double = _streams(constants["STREAMS"], (PARAM, GRAD), (PARAM,) if constants["UPDATE"] else ())
    if constants["UPDATE"]:
        loop = update_loop(direction, update, constants["SCALARS"], double)
    else:
        loop = norms_loop(direction, constants["SCALARS"], double)
    return _job(step_tiles, tensors[:-2], constants, streams, double, tensors[-2:], loop, load_float64)


@functools.cache
def _streams(streams: Any, read: tuple[int, ...], written: tuple[int, ...]) -> tuple[np.ndarray[Any, Any], bool]:
    """The streams' table for one of the kernels, and whether rules compute in float64."""
    own = tuple((*stream[:4], k in written, stream[5], k in read) for k, stream in enumerate(streams))
    return stream_table(own, is_double(streams)), is_double(streams)


def _job(
    body: Any, tensors: Any, constants: Any, streams: Any, double: bool, sums: Any, loop: int, convert: Any = None
) -> Job:
    """A job on these streams; `sums` are those of rows, and those that a program leaves or finds."""
    own = (streams.ctypes.data, len(streams), constants["TABLE_WIDTH"], constants["SCALARS"])
    last = (
        constants.get("UPDATE", False),
        0 if convert is None else codec_function(convert, double),
        sum_function(double),
    )
    return Job(address_of(body), words(*tensors, *own, *sums, loop, *last), GRAIN)


@njit(inline="always")
def take_numbers(memory: int, k: int, convert: int, numbers: int, count: int) -> int:
    """Where float64 numbers of the workspace are in the format that a rule computes in: there, or in the k-th slot."""
    if convert == 0:
        return numbers
    pointer(memory + STREAMS + k * STREAM_WORDS * 8, int64)[BUFFERS] = numbers
    call(convert, memory + STREAMS + k * STREAM_WORDS * 8, 0, count, memory + SLOTS + k * SLOT)
    return memory + SLOTS + k * SLOT


@njit(inline="always")
def clear(numbers: int, count: int) -> None:
    """Sets as many float64 numbers to 0, or twice as many float32."""
    bits = pointer(numbers, int64)
    for i in range(count):
        bits[i] = 0


@njit(inline="always")
def put_numbers(memory: int, k: int, convert: int, numbers: int, count: int) -> None:
    """Brings numbers from the k-th slot into the workspace, as float64."""
    if convert != 0:
        pointer(memory + STREAMS + k * STREAM_WORDS * 8, int64)[BUFFERS] = numbers
        call(convert, memory + STREAMS + k * STREAM_WORDS * 8, 0, count, memory + SLOTS + k * SLOT)
        return
    source, target = pointer(memory + SLOTS + k * SLOT, float64), pointer(numbers, float64)
    for i in range(count):
        target[i] = source[i]


def sum_tiles(arguments_at: int, program: int, end: int, memory: int) -> None:
    """Row and column sums of the squares of tiles, each to its own place in the workspace."""
    arguments = pointer(arguments_at, int64)
    entries, grads = pointer(arguments[ENTRIES], int32), pointer(arguments[GRADS], int64)
    streams, factors = pointer(arguments[STREAMS_AT], int64), pointer(arguments[WORDS], float64)
    pointers, room = pointer(memory + POINTERS, int64), memory + SLOTS + arguments[COUNT] * SLOT
    number = pointer(memory + ONE_NUMBER, float64)
    for current in range(program, end):
        entry = pointer(arguments[TABLE] + entries[3 * current] * arguments[TABLE_WIDTH] * 8, int64)
        grad = grads[entry[MEMBER]]
        if factors[SKIP] != 0.0 or grad == 0:
            continue
        open_streams(memory, streams, arguments[COUNT], entry, grad, 0)
        numbers = copy_row(memory, arguments[ROWS_AT] + entry[MEMBER] * WIDTH * 8, arguments[SCALARS])
        numbers[arguments[SCALARS]] = factors[SCALE]
        tile_row, tile_col = int64(entries[3 * current + 1]), int64(entries[3 * current + 2])
        rows, cols = entry[ROWS], entry[COLS]
        row_sums = pointer(arguments[WORKSPACE] + (entry[ROW_PARTIALS] + tile_col * rows) * 8, float64)
        col = tile_col * TILE_COLS
        width = min(TILE_COLS, cols - col)
        col_sums_at = arguments[WORKSPACE] + (entry[COL_PARTIALS] + tile_row * cols + col) * 8
        clear(room, width)
        for row in range(tile_row * TILE_ROWS, min((tile_row + 1) * TILE_ROWS, rows)):
            pointers[0] = load_piece(memory, streams, GRAD, row * cols + col, width)
            pointers[1], pointers[2] = room, room + SLOT
            number[0] = 0.0
            call(arguments[LOOP], memory + POINTERS, memory + NUMBERS, width, memory + ONE_NUMBER)
            row_sums[row] = number[0]
        put_numbers(memory, arguments[COUNT], arguments[CONVERT], col_sums_at, width)


def step_vectors(arguments_at: int, program: int, end: int, memory: int) -> None:
    """Adds the tiles' sums in order and moves blocks of `row_var` or `col_var`; the sum of each is left in the sums."""
    arguments = pointer(arguments_at, int64)
    entries, grads = pointer(arguments[ENTRIES], int32), pointer(arguments[GRADS], int64)
    streams, factors = pointer(arguments[STREAMS_AT], int64), pointer(arguments[WORDS], float64)
    pointers = pointer(memory + POINTERS, int64)
    room = memory + SLOTS + arguments[COUNT] * SLOT
    totals = pointer(room, float64)
    for current in range(program, end):
        entry = pointer(arguments[TABLE] + entries[3 * current] * arguments[TABLE_WIDTH] * 8, int64)
        grad = grads[entry[MEMBER]]
        if factors[SKIP] != 0.0 or grad == 0:
            continue
        open_streams(memory, streams, arguments[COUNT], entry, grad, 0)
        row_at = arguments[ROWS_AT] + entry[MEMBER] * WIDTH * 8
        set_key(memory, arguments[COUNT], row_at, entry[ORIGIN])
        numbers = copy_row(memory, row_at, arguments[SCALARS])
        on_rows = entries[3 * current + 1] == 0
        first = int64(entries[3 * current + 2]) * VECTOR_BLOCK
        length, across = (entry[ROWS], entry[COLS]) if on_rows else (entry[COLS], entry[ROWS])
        tile = TILE_COLS if on_rows else TILE_ROWS
        partials_at = arguments[WORKSPACE] + 8 * (entry[ROW_PARTIALS] if on_rows else entry[COL_PARTIALS])
        partials = pointer(partials_at, float64)
        count = min(VECTOR_BLOCK, length - first)
        for i in range(count):
            totals[i] = 0.0
        for k in range((across + tile - 1) // tile):
            for i in range(count):
                totals[i] += partials[k * length + first + i]
        numbers[arguments[SCALARS]] = float64(across)
        k = ROW_VAR if on_rows else COL_VAR
        pointers[0] = load_piece(memory, streams, k, first, count)
        pointers[1], pointers[2], pointers[3] = room, partials_at + first * 8, room + SLOT
        sum_at = arguments[SUMS] + current * 8
        pointer(sum_at, float64)[0] = 0.0
        call(arguments[LOOP], memory + POINTERS, memory + NUMBERS, count, sum_at)
        store_piece(memory, streams, k, first, count)


def step_tiles(arguments_at: int, program: int, end: int, memory: int) -> None:
    """The sums of u² and θ² of tiles, into the sums [programs, 2]; or their new θ, from the sums [tensors, 2]."""
    arguments = pointer(arguments_at, int64)
    entries, grads = pointer(arguments[ENTRIES], int32), pointer(arguments[GRADS], int64)
    streams, factors = pointer(arguments[STREAMS_AT], int64), pointer(arguments[WORDS], float64)
    pointers, count, scalars = pointer(memory + POINTERS, int64), arguments[COUNT], arguments[SCALARS]
    update = arguments[UPDATE] != 0
    for current in range(program, end):
        tensor = int64(entries[3 * current])
        entry = pointer(arguments[TABLE] + tensor * arguments[TABLE_WIDTH] * 8, int64)
        grad = grads[entry[MEMBER]]
        if factors[SKIP] != 0.0 or grad == 0:
            continue
        open_streams(memory, streams, count, entry, grad, 0)
        row_at = arguments[ROWS_AT] + entry[MEMBER] * WIDTH * 8
        set_key(memory, count, row_at, entry[ORIGIN])
        rows, cols = entry[ROWS], entry[COLS]
        numbers = copy_row(memory, row_at, scalars)
        numbers[scalars] = factors[SCALE]
        numbers[scalars + 2] = pointer(arguments[ROW_SUMS], float64)[tensor] / rows
        sums_at = arguments[SUMS] + (tensor if update else current) * 16
        sums = pointer(sums_at, float64)
        if update:
            numbers[scalars + 3], numbers[scalars + 4], numbers[scalars + 5] = sums[0], sums[1], float64(rows * cols)
        else:
            sums[0], sums[1] = 0.0, 0.0
        row_factors = pointer(arguments[WORKSPACE] + entry[ROW_PARTIALS] * 8, float64)
        col = int64(entries[3 * current + 2]) * TILE_COLS
        width = min(TILE_COLS, cols - col)
        top = int64(entries[3 * current + 1]) * TILE_ROWS
        col_factors = arguments[WORKSPACE] + (entry[COL_PARTIALS] + col) * 8
        pointers[2] = take_numbers(memory, count, arguments[CONVERT], col_factors, width)
        for k in range(1, 3):  # the squares of columns
            pointers[2 + k] = memory + SLOTS + (count + k) * SLOT
            clear(pointers[2 + k], width)
        for row in range(top, min(top + TILE_ROWS, rows)):
            first = row * cols + col
            numbers[scalars + 1] = row_factors[row]
            pointers[0] = load_piece(memory, streams, PARAM, first, width)
            pointers[1] = load_piece(memory, streams, GRAD, first, width)
            call(arguments[LOOP], memory + POINTERS, memory + NUMBERS, width, sums_at)
            store_piece(memory, streams, PARAM, first, width)
        if not update:
            for k in range(2):
                call(arguments[ADD], pointers[3 + k], sums_at + 8 * k, width, 0)
