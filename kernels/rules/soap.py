"""SOAP (Vyas et al. 2024): Adam in the rotated basis; what depends on whole matrices is a routine on batches."""

from __future__ import annotations

from ..language import tl, triton  # noqa: F401  (the interpreter looks for tl beside every JIT function)
from ..spec import Hyper, MatrixSpec, Pass, Row, RuleSpec
from . import adamw
from .adam import MOMENTS
from .matrices import APPLY, GATHER, IN_WORKSPACE, is_matrix
from .moments import ADAM_NAMES, ADAM_ROW, adam_direction, update_moments


@triton.jit
def rotated_adam_rule(param, grad, state, hyper):
    """U' = m̂/(√v̂ + eps), of the rotated gradient that stands in the parameter's place and gives it up."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, correction1, correction2 = hyper
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, param, beta1, gain1, beta2, gain2)
    return adam_direction(exp_avg, exp_avg_sq, correction1, correction2, eps), (exp_avg, exp_avg_sq)


def first_phase(hyper: Hyper, place: int, count: int) -> float:
    """Spread evenly over the period, so that no step changes the bases of all matrices."""
    return place * hyper["precondition_frequency"] // count if hyper["stagger"] else 0


_STREAMS = ("param", *MOMENTS)
ROTATED = RuleSpec(
    "soap_rotated",
    MOMENTS,
    (Pass(rotated_adam_rule, writes=_STREAMS, reads=_STREAMS),),
    Row(ADAM_NAMES),
    offsets=IN_WORKSPACE,
)
SLOTS = (*MOMENTS, "left_cov", "right_cov", "left_basis", "right_basis")
STARTS = {"phase": first_phase}
SOAP = MatrixSpec(
    "soap",
    "soap",
    SLOTS,
    ADAM_ROW,
    GATHER,
    APPLY,
    scheduled=True,
    counters=("phase",),
    between=ROTATED,
    starts=STARTS,
)
SPECS = (SOAP, ROTATED)


def select(hyper: Hyper, ndim: int) -> RuleSpec | MatrixSpec:
    """Matrices are rotated; the rest takes AdamW."""
    return SOAP if is_matrix(hyper, ndim) else adamw.PLAIN
