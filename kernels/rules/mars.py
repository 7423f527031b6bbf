"""MARS (Yuan et al. 2024): AdamW on a variance-reduced gradient, clipped to unit norm per tensor."""

from __future__ import annotations

from ..arithmetic import divide, square_root
from ..language import tl, triton
from ..spec import Hyper, Pass, Row, RuleSpec
from .moments import ADAM_NAMES, adam_direction, corrections, update_moments


@triton.jit
def corrected_gradient(grad, last_grad, correction):
    """c = g + gamma·β1/(1−β1)·(g − last_grad)."""
    return grad + correction * (grad - last_grad)


@triton.jit
def mars_norm_rule(param, grad, state, hyper):
    """First pass: the terms of ‖c‖²."""
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, correction1, correction2, correction = hyper
    corrected = corrected_gradient(grad, state[2], correction)
    return param, state, (corrected * corrected,)


@triton.jit
def mars_clipped_rule(param, grad, state, hyper):
    """Second pass: c ← c/‖c‖ if ‖c‖ > 1, then AdamW on c; last_grad ← g."""
    exp_avg, exp_avg_sq, last_grad = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, correction1, correction2, correction, norm_sq, numel = hyper
    corrected = corrected_gradient(grad, last_grad, correction)  # before the norm: ptxas takes ten registers fewer
    norm = square_root(norm_sq)
    corrected = divide(corrected, tl.where(norm > 1.0, norm, 1.0))
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, corrected, beta1, gain1, beta2, gain2)
    update = adam_direction(exp_avg, exp_avg_sq, correction1, correction2, eps)
    return param - lr * (update + weight_decay * param), (exp_avg, exp_avg_sq, grad)


@triton.jit
def mars_unclipped_rule(param, grad, state, hyper):
    """The only pass without clipping."""
    exp_avg, exp_avg_sq, last_grad = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, correction1, correction2, correction = hyper
    corrected = corrected_gradient(grad, last_grad, correction)
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, corrected, beta1, gain1, beta2, gain2)
    update = adam_direction(exp_avg, exp_avg_sq, correction1, correction2, eps)
    return param - lr * (update + weight_decay * param), (exp_avg, exp_avg_sq, grad)


@triton.jit
def scalars(hyper, step, counters):
    """Adam's, then gamma·β1/(1−β1)."""
    lr, weight_decay, eps, beta1, beta2, gamma = hyper
    correction1, correction2 = corrections(beta1, beta2, step)
    moments = (lr, weight_decay, eps, beta1, 1.0 - beta1, beta2, 1.0 - beta2, correction1, correction2)
    return moments + (gamma * beta1 / (1.0 - beta1),), counters


ROW = Row((*ADAM_NAMES, "correction"), ("weight_decay", "eps", "betas", "gamma"), scalars)
_SLOTS = ("exp_avg", "exp_avg_sq", "last_grad")
_WRITES = ("param", *_SLOTS)
_NORM = Pass(mars_norm_rule, (), sums=1, reads=("grad", "last_grad"))
CLIPPED = RuleSpec("mars", _SLOTS, (_NORM, Pass(mars_clipped_rule, _WRITES)), ROW)
UNCLIPPED = RuleSpec("mars_unclipped", _SLOTS, (Pass(mars_unclipped_rule, _WRITES),), ROW)
SPECS = (CLIPPED, UNCLIPPED)


def select(hyper: Hyper, ndim: int) -> RuleSpec:
    """The variant that these hyperparameters ask for."""
    return CLIPPED if hyper["clip_c"] else UNCLIPPED
