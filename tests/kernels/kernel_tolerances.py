"""How far kernels may be from the float64 reference, one row per storage, with its reason.

A stored number passes if it is the storage format's rounding of some number within the tolerance of the reference's:
the rounding itself gets no slack. Every element has to pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlx_gpu.reference.formats import round_to

PROMISED = 2e-5  # of the largest magnitude in the tensor; no row goes beyond it before the rounding


@dataclass(frozen=True)
class Storage:
    """Formats of parameters, gradients and state, and the tolerance that goes with them.

    Args:
        relative: of the largest magnitude that the tensor has had since both sides started from the same numbers; what
            was lost when an element was large is still missing when it has become small.
        of_change: of the parameter's largest change in this step; only for rules that read back what they stored.
        steps: after which of the steps to compare.
        forced: whether the reference starts every compared step from the numbers that the kernels stored.
    """

    name: str
    param: str
    grad: str
    state: str
    relative: float
    of_change: float
    steps: tuple[int, ...]
    forced: bool
    reason: str

    def __str__(self) -> str:
        return self.name


FLOAT32 = Storage(
    *("float32", "float32", "float32", "float32"),
    relative=1e-6,
    of_change=0.0,
    steps=(1, 2, 17),
    forced=False,
    reason="17 steps of about ten float32 operations, each wrong by at most 2^-24 = 6e-8; 4e-7 is the most seen",
)
STORAGES = (
    FLOAT32,
    Storage(
        *("bfloat16", "bfloat16", "bfloat16", "bfloat16"),
        relative=5e-7,
        of_change=1.5 * 2.0**-8,
        steps=(1, 2),
        forced=True,
        reason="one step of float32 arithmetic before the rounding; LAMB and Adafactor compute the update from moments "
        "that they have stored and read back, each off by 2^-8: one and a half of these in m/√v, three halves in "
        "g/√(R·C/mean R)",
    ),
    Storage(
        *("bfloat16_float32_state", "bfloat16", "bfloat16", "float32"),
        relative=5e-7,
        of_change=0.0,
        steps=(1, 2),
        forced=True,
        reason="one step of float32 arithmetic before the rounding",
    ),
    Storage(
        *("float16", "float16", "float16", "float32"),
        relative=5e-7,
        of_change=0.0,
        steps=(1, 2),
        forced=True,
        reason="one step of float32 arithmetic before the rounding",
    ),
    Storage(
        *("float32_bfloat16_grad", "float32", "bfloat16", "float32"),
        relative=5e-7,
        of_change=0.0,
        steps=(1, 2),
        forced=True,
        reason="one step of float32 arithmetic",
    ),
)


def errors(
    actual: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    slack: Mapping[str, float],
    formats: Mapping[str, str],
) -> list[str]:
    """What is wrong, a line per array; nothing if the kernels agree with the reference.

    Args:
        actual, expected: arrays by key; `expected` in float64, not rounded to the storage format.
        slack: how far each array may be off before the rounding.
        formats: the storage format of each array.
    """
    if actual.keys() != expected.keys():
        return [f"keys differ: {sorted(actual.keys() ^ expected.keys())}"]
    wrong = []
    for key, wanted in expected.items():
        found = actual[key]
        if found.shape != wanted.shape:
            wrong.append(f"{key}: shape {found.shape}, expected {wanted.shape}")
            continue
        low, high = (round_to(wanted + sign * slack[key], formats[key]) for sign in (-1.0, 1.0))
        outside = ~((low <= found) & (found <= high))
        if outside.any():
            off = np.where(outside, np.abs(found - wanted), -1.0)
            worst = int(np.argmax(off))
            place = tuple(map(int, np.unravel_index(worst, found.shape)))
            wrong.append(
                f"{key}: {outside.sum()} of {found.size} elements, worst at {place}: {found.flat[worst]:.9g}, expected "
                f"{wanted.flat[worst]:.9g}; off by {off.flat[worst] / (largest(wanted) or 1.0):.1e} of the largest"
            )
    return wrong


def largest(x: np.ndarray) -> float:
    """The largest magnitude, 0 of nothing."""
    return float(np.abs(x).max(initial=0.0))
