"""The threads of the host: as many as torch is set to use, from Numba's pool.

A job too small to be worth it is done by the caller, who needs no pool; so is every job in a forked process whose
threads did not come along: GNU's OpenMP ends one that asks for them. Where "workqueue" is the only pool that Numba can
load, it aborts a process in which two threads enter it, and calls wait for each other.
"""

from __future__ import annotations

import functools
import threading
from contextlib import nullcontext
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange, types

from ..processes import has_lost_threads, note_threads
from .build import compiled
from .native import call, int64
from .programs import MEMORY, Job

ALIGNMENT = 64
_one_at_a_time = threading.Lock()


def thread_count() -> int:
    """How many threads a large job is spread over."""
    most = 1 if has_lost_threads() else int(numba.config.NUMBA_NUM_THREADS)
    return min(torch.get_num_threads(), most)


def compile_loops() -> None:
    """Compiles or loads what runs jobs."""
    _alone()
    if thread_count() > 1:
        _together()


def run(job: Job, programs: int) -> None:
    """Runs all programs of a job."""
    parts = max(1, min(thread_count(), programs // job.grain))
    memory = np.empty(parts * MEMORY + ALIGNMENT, dtype=np.uint8)
    start = -(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT
    arguments = job.function, job.arguments.ctypes.data, programs, start
    if parts == 1:
        _alone()(*arguments)
    else:
        _spread(arguments, parts)


def _spread(arguments: tuple[int, int, int, int], parts: int) -> None:
    """Runs the programs in so many parts at once."""
    note_threads()
    before = numba.get_num_threads()
    with _one_at_a_time if _pool() in (None, "workqueue") else nullcontext():
        numba.set_num_threads(parts)
        try:
            _together()(*arguments, parts)
        finally:
            numba.set_num_threads(before)


def _pool() -> str | None:
    """Which of its pools Numba uses; None until one is started."""
    try:
        return str(numba.threading_layer())
    except ValueError:
        return None


@functools.cache
def _alone() -> Any:
    """All programs one after the other."""
    return _compiled(run_alone, 4)


@functools.cache
def _together() -> Any:
    """The programs in parts, each with memory of its own."""
    return _compiled(run_together, 5, parallel=True)


def _compiled(function: Any, arguments: int, **options: Any) -> Any:
    """The function, compiled or loaded from disk; while it runs, other threads of Python go on."""
    signature = types.void(*[int64] * arguments)
    return compiled(function, lambda one, keep: njit(signature, nogil=True, cache=keep, **options)(one))


def run_alone(function: int, arguments: int, programs: int, memory: int) -> None:
    """Calls a program once, for all."""
    call(function, arguments, 0, programs, memory)


def run_together(function: int, arguments: int, programs: int, memory: int, parts: int) -> None:
    """Calls a program once a part, side by side."""
    for part in prange(parts):
        call(function, arguments, programs * part // parts, programs * (part + 1) // parts, memory + part * MEMORY)
