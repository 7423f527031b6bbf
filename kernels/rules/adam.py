"""Adam (Kingma & Ba 2014), with AMSGrad (Reddi et al. 2018)."""

from __future__ import annotations

from ..arithmetic import at_least
from ..language import tl, triton  # noqa: F401  (the interpreter looks for tl beside every JIT function)
from ..spec import Hyper, Pass, RuleSpec
from .moments import ADAM_ROW, adam_direction, update_moments


@triton.jit
def adam_rule(param, grad, state, hyper):
    """g ← g + λθ; θ ← θ − lr·m̂/(√v̂ + eps)."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, correction1, correction2 = hyper
    grad = grad + weight_decay * param
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2)
    update = adam_direction(exp_avg, exp_avg_sq, correction1, correction2, eps)
    return param - lr * update, (exp_avg, exp_avg_sq)


@triton.jit
def adam_amsgrad_rule(param, grad, state, hyper):
    """Adam with the largest v so far in place of v."""
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, correction1, correction2 = hyper
    grad = grad + weight_decay * param
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2)
    max_exp_avg_sq = at_least(exp_avg_sq, max_exp_avg_sq)
    update = adam_direction(exp_avg, max_exp_avg_sq, correction1, correction2, eps)
    return param - lr * update, (exp_avg, exp_avg_sq, max_exp_avg_sq)


MOMENTS = ("exp_avg", "exp_avg_sq")
MAXIMA = (*MOMENTS, "max_exp_avg_sq")
PLAIN = RuleSpec("adam", MOMENTS, (Pass(adam_rule, ("param", *MOMENTS)),), ADAM_ROW)
AMSGRAD = RuleSpec("adam_amsgrad", MAXIMA, (Pass(adam_amsgrad_rule, ("param", *MAXIMA)),), ADAM_ROW)
SPECS = (PLAIN, AMSGRAD)


def select(hyper: Hyper, ndim: int) -> RuleSpec:
    """The variant that these hyperparameters ask for."""
    return AMSGRAD if hyper["amsgrad"] else PLAIN
