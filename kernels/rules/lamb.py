"""LAMB (You et al. 2019): AdamW's direction, scaled per tensor by ‖θ‖/‖u‖."""

from __future__ import annotations

from ..arithmetic import divide, square_root
from ..language import tl, triton
from ..spec import Pass, Row, RuleSpec
from .adam import MOMENTS
from .moments import ADAM_NAMES, adam_direction, corrections, update_moments


@triton.jit
def lamb_direction(param, exp_avg, exp_avg_sq, weight_decay, eps, correction1, correction2):
    """u = m̂/(√v̂ + eps) + λθ."""
    return adam_direction(exp_avg, exp_avg_sq, correction1, correction2, eps) + weight_decay * param


@triton.jit
def lamb_moments_rule(param, grad, state, hyper):
    """First pass: the moments, and the terms of ‖θ‖² and ‖u‖²."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, correction1, correction2 = hyper
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2)
    update = lamb_direction(param, exp_avg, exp_avg_sq, weight_decay, eps, correction1, correction2)
    return param, (exp_avg, exp_avg_sq), (param * param, update * update)


@triton.jit
def lamb_update_rule(param, grad, state, hyper):
    """Second pass: u again from the stored moments; θ ← θ − lr·(‖θ‖/‖u‖)·u, the ratio 1 if either norm is 0."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, correction1, correction2, param_sq, update_sq, numel = hyper
    update = lamb_direction(param, exp_avg, exp_avg_sq, weight_decay, eps, correction1, correction2)
    ratio = divide(square_root(param_sq), square_root(update_sq))
    trust = tl.where((param_sq == 0.0) | (update_sq == 0.0), 1.0, ratio)
    return param - lr * trust * update, (exp_avg, exp_avg_sq)


@triton.jit
def scalars(hyper, step, counters):
    """As Adam's row has them, the corrections 1 without bias correction."""
    lr, weight_decay, eps, beta1, beta2, bias_correction = hyper
    correction1, correction2 = corrections(beta1, beta2, step)
    correction1 = tl.where(bias_correction != 0.0, correction1, 1.0)
    correction2 = tl.where(bias_correction != 0.0, correction2, 1.0)
    return (lr, weight_decay, eps, beta1, 1.0 - beta1, beta2, 1.0 - beta2, correction1, correction2), counters


ROW = Row(ADAM_NAMES, ("weight_decay", "eps", "betas", "bias_correction"), scalars)
_UPDATE = Pass(lamb_update_rule, ("param",), reads=("param", *MOMENTS))
SPEC = RuleSpec("lamb", MOMENTS, (Pass(lamb_moments_rule, MOMENTS, sums=2), _UPDATE), ROW)
SPECS = (SPEC,)
