"""What the host's forms of kernels have in common: how they take their arguments, and how they walk through streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from ...kernels.elementwise import FROM_GRAD, FROM_WORKSPACE
from ...kernels.spec import KEY, ROW_WIDTH
from .codecs import BUFFERS, ORIGIN, SEED, SLOT, STEP, STREAM_WORDS, codec_function
from .halves import HALVES
from .native import call, float64, int64, pointer

WIDTH = ROW_WIDTH  # float64 numbers of a row; its last words are int64, the step and the seed
STEP_WORD, SEED_WORD = ROW_WIDTH - len(KEY), ROW_WIDTH - len(KEY) + 1
SCALE, SKIP = 0, 1  # of the words
GRAD_BASE, WORKSPACE_BASE = int(FROM_GRAD.value), int(FROM_WORKSPACE.value)

# One stream as a program is told of it, int64 each. LOAD and STORE are 0 where values are used as they are stored.
FIELDS = ("load", "store", "column", "buffers", "written", "base", "read", "size")
LOAD, STORE, COLUMN, BUFFER_COUNT, WRITTEN, BASE, READ, SIZE = range(len(FIELDS))
FIELD_COUNT = len(FIELDS)

# A program's own memory: the addresses of a loop's streams, its numbers, its streams' words, a number, then the slots.
MOST_STREAMS = 16
POINTERS, NUMBERS, STREAMS, ONE_NUMBER = 0, 512, 1024, 1024 + MOST_STREAMS * STREAM_WORDS * 8
SLOTS = ONE_NUMBER + 64
MEMORY = SLOTS + MOST_STREAMS * SLOT


class Job(NamedTuple):
    """A compiled program, its arguments, and how many programs are worth a thread."""

    function: int
    arguments: np.ndarray[Any, Any]
    grain: int


Form = Callable[..., Job]  # the host's form of a kernel, of the same arguments


def words(*arguments: Any) -> np.ndarray[Any, Any]:
    """Arguments as int64: the addresses of tensors and arrays, numbers as they are."""
    return np.array([one.data_ptr() if hasattr(one, "data_ptr") else one for one in arguments], dtype=np.int64)


def is_double(streams: Sequence[tuple[Any, ...]]) -> bool:
    """Whether rules compute in float64: the parameter's format says so."""
    return bool(streams[0][0].__name__ == "load_float64")


def direct_formats(streams: Sequence[tuple[Any, ...]], double: bool) -> tuple[str, ...]:
    """Of each stream, the 16-bit format that a loop converts as it goes, or nothing."""
    found = []
    for load, store, *_, written, _, _ in streams:
        form = load.__name__.removeprefix("load_")
        plain = form in HALVES and (not written or store.__name__ == f"store_{form}")
        found.append(form if plain and not double else "")
    return tuple(found)


def stream_table(
    streams: Sequence[tuple[Any, ...]], double: bool, direct: Sequence[str] | None = None
) -> np.ndarray[Any, Any]:
    """int64 [streams, FIELDS], of what the kernels are told of their streams; `direct` as `direct_formats` has it."""
    rows = []
    for (load, store, column, buffers, written, base, read), form in zip(
        streams, direct or [""] * len(streams), strict=True
    ):
        wanted = (load, read and not form), (store, written and not form)
        functions = [codec_function(one, double) if needed else 0 for one, needed in wanted]
        rows.append([*functions, column, buffers, written, base, read, 2 if form else 8 if double else 4])
    if len(rows) > MOST_STREAMS - 2:
        raise ValueError(f"a rule has at most {MOST_STREAMS - 2} streams on the CPU, got {len(rows)}")
    return np.array(rows, dtype=np.int64)


@njit(inline="always")
def open_streams(memory: int, streams: Any, count: int, entry: Any, grad: int, workspace: int) -> None:
    """Finds where the buffers of every stream of a tensor are; `entry` is the tensor's row of the table."""
    for k in range(count):
        stream = pointer(memory + STREAMS + k * STREAM_WORDS * 8, int64)
        base = streams[k * FIELD_COUNT + BASE]
        offset = grad if base == GRAD_BASE else workspace if base == WORKSPACE_BASE else 0
        for b in range(streams[k * FIELD_COUNT + BUFFER_COUNT]):
            stream[BUFFERS + b] = entry[streams[k * FIELD_COUNT + COLUMN] + b] + offset


@njit(inline="always")
def set_key(memory: int, count: int, row: int, origin: int) -> None:
    """Names the random bits of every stream of a tensor; `row` is the address of its row of scalars."""
    key = pointer(row, int64)
    for k in range(count):
        stream = pointer(memory + STREAMS + k * STREAM_WORDS * 8, int64)
        stream[SEED], stream[STEP], stream[ORIGIN] = key[SEED_WORD], key[STEP_WORD], origin


@njit(inline="always")
def load_piece(memory: int, streams: Any, k: int, first: int, count: int) -> int:
    """Where the values of a piece of a stream are: in place, or in its slot; those of a stream that is neither read nor
    written are anything.
    """
    stream, slot = memory + STREAMS + k * STREAM_WORDS * 8, memory + SLOTS + k * SLOT
    if streams[k * FIELD_COUNT + LOAD] != 0:
        call(streams[k * FIELD_COUNT + LOAD], stream, first, count, slot)
        return slot
    used = streams[k * FIELD_COUNT + READ] != 0 or streams[k * FIELD_COUNT + WRITTEN] != 0
    if used and streams[k * FIELD_COUNT + STORE] == 0:
        slot = pointer(stream, int64)[BUFFERS] + first * streams[k * FIELD_COUNT + SIZE]
    return slot


@njit(inline="always")
def store_piece(memory: int, streams: Any, k: int, first: int, count: int) -> None:
    """Brings the values of a piece of a stream back from its slot, if they are there."""
    if streams[k * FIELD_COUNT + STORE] != 0:
        call(
            streams[k * FIELD_COUNT + STORE],
            memory + STREAMS + k * STREAM_WORDS * 8,
            first,
            count,
            memory + SLOTS + k * SLOT,
        )


@njit(inline="always")
def copy_row(memory: int, row: int, count: int) -> Any:
    """The first scalars of a row as a loop's numbers, which are returned for more to follow."""
    numbers, scalars = pointer(memory + NUMBERS, float64), pointer(row, float64)
    for i in range(count):
        numbers[i] = scalars[i]
    return numbers
