"""The host's form of `rlx_gpu.kernels.reductions`: sums of float64 numbers in a fixed order."""

from __future__ import annotations

from typing import Any

from .build import address_of
from .native import float64, int64, pointer
from .programs import Job, words

GRAIN = 64


def finish_sums_kernel(*tensors: Any, SUMS: int, **constants: Any) -> Job:
    """Adds up partial sums; the arguments are the kernel's."""
    return Job(address_of(finish_sums), words(*tensors, SUMS), GRAIN)


def finish_sums(arguments_at: int, program: int, end: int, memory: int) -> None:
    """The sums from one program to another: partials, ranges and sums, then how many sums there are of each."""
    arguments = pointer(arguments_at, int64)
    partials, ranges = pointer(arguments[0], float64), pointer(arguments[1], int64)
    sums, count = pointer(arguments[2], float64), arguments[3]
    for current in range(program, end):
        for i in range(count):
            result = 0.0
            for row in range(ranges[2 * current], ranges[2 * current + 1]):
                result += partials[row * count + i]
            sums[current * count + i] = result
