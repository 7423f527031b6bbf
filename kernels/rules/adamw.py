"""AdamW (Loshchilov & Hutter 2017), with AMSGrad."""

from __future__ import annotations

from ..arithmetic import at_least
from ..language import tl, triton  # noqa: F401  (the interpreter looks for tl beside every JIT function)
from ..spec import Hyper, Pass, RuleSpec
from .adam import MAXIMA, MOMENTS
from .moments import ADAM_ROW, adam_direction, update_moments


@triton.jit
def adamw_rule(param, grad, state, hyper):
    """θ ← θ − lr(m̂/(√v̂ + eps) + λθ)."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, correction1, correction2 = hyper
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2)
    update = adam_direction(exp_avg, exp_avg_sq, correction1, correction2, eps)
    return param - lr * (update + weight_decay * param), (exp_avg, exp_avg_sq)


@triton.jit
def adamw_amsgrad_rule(param, grad, state, hyper):
    """AdamW with the largest v so far in place of v."""
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, correction1, correction2 = hyper
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2)
    max_exp_avg_sq = at_least(exp_avg_sq, max_exp_avg_sq)
    update = adam_direction(exp_avg, max_exp_avg_sq, correction1, correction2, eps)
    return param - lr * (update + weight_decay * param), (exp_avg, exp_avg_sq, max_exp_avg_sq)


PLAIN = RuleSpec("adamw", MOMENTS, (Pass(adamw_rule, ("param", *MOMENTS)),), ADAM_ROW)
AMSGRAD = RuleSpec("adamw_amsgrad", MAXIMA, (Pass(adamw_amsgrad_rule, ("param", *MAXIMA)),), ADAM_ROW)
SPECS = (PLAIN, AMSGRAD)


def select(hyper: Hyper, ndim: int) -> RuleSpec:
    """The variant that these hyperparameters ask for."""
    return AMSGRAD if hyper["amsgrad"] else PLAIN
