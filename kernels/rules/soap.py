"""SOAP (Vyas et al. 2024): Adam in the rotated basis; what depends on whole matrices is a routine on batches."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  (the interpreter looks for it beside every JIT function)

from ..spec import Counters, Hyper, MatrixSpec, Pass, RuleSpec
from . import adamw
from .adam import MOMENTS
from .matrices import apply_scalars, is_matrix
from .moments import adam_direction, corrections, moment_scalars, update_moments


@triton.jit
def rotated_adam_rule(param, grad, state, hyper):
    """U' = m̂/(√v̂ + eps), of the rotated gradient that stands in the parameter's place and gives it up."""
    exp_avg, exp_avg_sq = state
    eps, beta1, gain1, beta2, gain2, correction1, correction2 = hyper
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, param, beta1, gain1, beta2, gain2)
    return adam_direction(exp_avg, exp_avg_sq, correction1, correction2, eps), (exp_avg, exp_avg_sq)


def rotated_scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(eps, β1, 1−β1, β2, 1−β2, 1/bc1, 1/√bc2)."""
    return hyper["eps"], *moment_scalars(hyper["betas"]), *corrections(hyper["betas"], step)


def first_phase(hyper: Hyper, place: int, count: int) -> float:
    """Spread evenly over the period, so that no step changes the bases of all matrices."""
    return place * hyper["precondition_frequency"] // count if hyper["stagger"] else 0


ROTATED = RuleSpec("soap_rotated", MOMENTS, (Pass(rotated_adam_rule, ("param", *MOMENTS)),), rotated_scalars)
SOAP = MatrixSpec(
    "soap",
    "soap",
    (*MOMENTS, "left_cov", "right_cov", "left_basis", "right_basis"),
    apply_scalars,
    scheduled=True,
    counters={"phase": 0.0},
    starts={"phase": first_phase},
)
SPECS = (ROTATED,)


def select(hyper: Hyper, ndim: int) -> RuleSpec | MatrixSpec:
    """Matrices are rotated; the rest takes AdamW."""
    return SOAP if is_matrix(hyper, ndim) else adamw.PLAIN
