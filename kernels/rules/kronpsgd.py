"""KronPSGD (Li 2018): what a step reads; the matrices' part is a routine on batches."""

from __future__ import annotations

from ..arithmetic import power
from ..language import tl, triton  # noqa: F401  (the interpreter looks for tl beside every JIT function)
from ..spec import Hyper, MatrixSpec, Row
from .matrices import APPLY, GATHER, is_matrix


@triton.jit
def scalars(hyper, step, counters):
    """(lr, λ, 1 − βᵗ)."""
    lr, weight_decay, momentum = hyper
    return (lr, weight_decay, 1.0 - power(momentum, step)), counters


ROW = Row(("lr", "weight_decay", "bias_correction"), ("weight_decay", "momentum"), scalars)
BOUNDS = ("left_lipschitz", "right_lipschitz")
SLOTS = ("exp_avg", "left_factor", "right_factor", *BOUNDS)
FLAT_SLOTS = ("exp_avg", "factor", "lipschitz")
KRON = MatrixSpec("kronpsgd", "kron", SLOTS, ROW, GATHER, APPLY, scheduled=True, numbers=BOUNDS)
DIAGONAL = MatrixSpec(
    "kronpsgd_diagonal", "kron", FLAT_SLOTS, ROW, GATHER, APPLY, scheduled=True, flat=True, numbers=("lipschitz",)
)
SPECS = (KRON, DIAGONAL)


def select(hyper: Hyper, ndim: int) -> MatrixSpec:
    """A factor on each side of a matrix, one diagonal factor for anything else."""
    return KRON if is_matrix(hyper, ndim) else DIAGONAL
