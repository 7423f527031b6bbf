"""NAdamW: Nesterov momentum in AdamW (Dozat 2016); with `momentum_decay`, the schedule of torch's NAdam."""

from __future__ import annotations

import math

from ..arithmetic import divide, power, square_root
from ..language import tl, triton
from ..spec import Hyper, Pass, Row, RuleSpec
from .adam import MOMENTS
from .moments import ADAM_NAMES, update_moments


@triton.jit
def nadamw_rule(param, grad, state, hyper):
    """θ ← θ − lr((a·m + b·g)/(√v̂ + eps) + λθ), a and b from the row."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, avg_weight, grad_weight, correction2 = hyper
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2)
    lookahead = avg_weight * exp_avg + grad_weight * grad
    update = divide(lookahead, square_root(exp_avg_sq) * correction2 + eps)
    return param - lr * (update + weight_decay * param), (exp_avg, exp_avg_sq)


@triton.jit
def constant_scalars(hyper, step, counters):
    """m̄ = β1·m/(1−β1^{t+1}) + (1−β1)·g/(1−β1^t)."""
    lr, weight_decay, eps, beta1, beta2 = hyper
    avg_weight = beta1 / (1.0 - power(beta1, step + 1.0))
    grad_weight = (1.0 - beta1) / (1.0 - power(beta1, step))
    correction2 = 1.0 / tl.sqrt(1.0 - power(beta2, step))
    moments = (lr, weight_decay, eps, beta1, 1.0 - beta1, beta2, 1.0 - beta2)
    return moments + (avg_weight, grad_weight, correction2), counters


@triton.jit
def scheduled_scalars(hyper, step, counters):
    """m̄ = μ_{t+1}·m/(1 − Π_t μ_{t+1}) + (1−μ_t)·g/(1−Π_t), with μ_t = β1(1 − ½·0.96^{tψ})."""
    lr, weight_decay, eps, beta1, beta2, momentum_decay, log_base = hyper
    (mu_product,) = counters
    current = beta1 * (1.0 - 0.5 * tl.exp(step * momentum_decay * log_base))
    following = beta1 * (1.0 - 0.5 * tl.exp((step + 1.0) * momentum_decay * log_base))
    mu_product = mu_product * current
    avg_weight = following / (1.0 - mu_product * following)
    grad_weight = (1.0 - current) / (1.0 - mu_product)
    correction2 = 1.0 / tl.sqrt(1.0 - power(beta2, step))
    moments = (lr, weight_decay, eps, beta1, 1.0 - beta1, beta2, 1.0 - beta2)
    return moments + (avg_weight, grad_weight, correction2), (mu_product,)


NAMES = (*ADAM_NAMES[:7], "avg_weight", "grad_weight", "correction2")
INPUTS = ("weight_decay", "eps", "betas")
CONSTANT = Row(NAMES, INPUTS, constant_scalars)
SCHEDULE = Row(NAMES, (*INPUTS, "momentum_decay"), scheduled_scalars, constants=(math.log(0.96),))
_PASSES = (Pass(nadamw_rule, ("param", *MOMENTS)),)
PLAIN = RuleSpec("nadamw", MOMENTS, _PASSES, CONSTANT)
SCHEDULED = RuleSpec("nadamw_scheduled", MOMENTS, _PASSES, SCHEDULE, counters=("mu_product",))
SPECS = (PLAIN, SCHEDULED)


def select(hyper: Hyper, ndim: int) -> RuleSpec:
    """The variant that these hyperparameters ask for; both have the same passes."""
    return PLAIN if hyper["momentum_decay"] is None else SCHEDULED
