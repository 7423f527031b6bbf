"""The host's form of `rlx_gpu.kernels.words`: float64 numbers, the norm float32."""

from __future__ import annotations

import math
from typing import Any

from ...kernels import words as kernels
from .build import address_of
from .native import float32, float64, int64, pointer
from .programs import SCALE, SKIP, Job, words

FACTOR, DIVISOR, FOUND_INF, MAX_NORM = (
    int(place.value) for place in (kernels.FACTOR, kernels.DIVISOR, kernels.FOUND_INF, kernels.MAX_NORM)
)


def words_kernel(*tensors: Any, COUNT: int, GUARDED: bool, CLIPPED: bool, **constants: Any) -> Job:
    """The words of one step; the arguments are the kernel's."""
    return Job(address_of(compute_words), words(*tensors, COUNT, GUARDED, CLIPPED), 1)


def compute_words(arguments_at: int, program: int, end: int, memory: int) -> None:
    """The words from what was given, norms, and the numbers of entries that are not finite."""
    arguments = pointer(arguments_at, int64)
    given, totals, own = (
        pointer(arguments[0], float64),
        pointer(arguments[1], float64),
        pointer(arguments[2], float64),
    )
    scale = given[FACTOR] * float64(float32(1.0 / given[DIVISOR]))
    bad, squares, nonfinite = given[FOUND_INF], 0.0, 0.0
    for i in range(arguments[4]):
        squares += totals[2 * i]
        nonfinite += totals[2 * i + 1]
    if arguments[4] > 0:
        norm = math.sqrt(squares) * abs(scale)
        pointer(arguments[3], float32)[0] = float32(math.nan if nonfinite > 0.0 else norm)
        if arguments[6] != 0 and norm > given[MAX_NORM]:
            scale *= given[MAX_NORM] / norm
        if arguments[5] != 0:
            bad += nonfinite if abs(scale) < math.inf else 1.0
            if arguments[6] != 0 and not norm < math.inf:
                bad += 1.0
    own[SCALE] = scale
    own[SKIP] = 1.0 if bad != 0.0 else 0.0
