"""KronPSGD (Li 2018): what the host decides of a step; the matrices' part is a routine on batches."""

from __future__ import annotations

import math

from ..spec import Counters, Hyper, MatrixSpec
from .matrices import is_matrix

COUNTERS = {"update_credit": 0.0, "update_count": 0.0}


def scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(lr, λ); the credit grows by clamp(e^(−0.001(t−500)), 0.03, 1) and at 1 pays for an update of the factors."""
    credit = counters["update_credit"] + min(max(math.exp(-0.001 * (step - 500)), 0.03), 1.0)
    due = credit >= 1
    counters["update_credit"] = credit - due
    counters["update_count"] += due
    return hyper["lr"], hyper["weight_decay"]


BOUNDS = ("left_lipschitz", "right_lipschitz")
KRON = MatrixSpec(
    "kronpsgd",
    "kron",
    ("exp_avg", "left_factor", "right_factor", *BOUNDS),
    scalars,
    scheduled=True,
    numbers=BOUNDS,
    counters=COUNTERS,
)
DIAGONAL = MatrixSpec(
    "kronpsgd_diagonal",
    "kron",
    ("exp_avg", "factor", "lipschitz"),
    scalars,
    scheduled=True,
    flat=True,
    numbers=("lipschitz",),
    counters=COUNTERS,
)
SPECS = ()


def select(hyper: Hyper, ndim: int) -> MatrixSpec:
    """A factor on each side of a matrix, one diagonal factor for anything else."""
    return KRON if is_matrix(hyper, ndim) else DIAGONAL
