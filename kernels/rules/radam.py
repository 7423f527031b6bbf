"""RAdam (Liu et al. 2019)."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ..arithmetic import divide, square_root
from ..spec import Counters, Hyper, Pass, RuleSpec
from .adam import MOMENTS
from .moments import moment_scalars, update_moments


@triton.jit
def radam_rule(param, grad, state, hyper):
    """g ← g + λθ; θ ← θ − lr·a·m/(b√v + c); the host sets b = 0 and c = 1 while the variance is intractable."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, beta1, gain1, beta2, gain2, avg_weight, root_weight, offset = hyper
    grad = grad + weight_decay * param
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2)
    denominator = root_weight * square_root(exp_avg_sq) + offset
    # While b is 0 a v that has overflowed must not count.
    update = divide(avg_weight * exp_avg, tl.where(root_weight == 0.0, offset, denominator))
    return param - lr * update, (exp_avg, exp_avg_sq)


def scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """Rectifies from the first step at which ρ_t > 4."""
    beta1, beta2 = hyper["betas"]
    bias_correction1, bias_correction2 = 1.0 - beta1**step, 1.0 - beta2**step
    rho_limit = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_limit - 2.0 * step * beta2**step / bias_correction2
    weights = (1.0 / bias_correction1, 0.0, 1.0)
    if rho > 4.0:
        excess = (rho - 4.0) * (rho - 2.0) * rho_limit
        rectification = math.sqrt(excess / ((rho_limit - 4.0) * (rho_limit - 2.0) * rho))
        weights = (rectification / bias_correction1, 1.0 / math.sqrt(bias_correction2), hyper["eps"])
    return hyper["lr"], hyper["weight_decay"], *moment_scalars(hyper["betas"]), *weights


SPEC = RuleSpec("radam", MOMENTS, (Pass(radam_rule, ("param", *MOMENTS)),), scalars)
SPECS = (SPEC,)


def select(hyper: Hyper, ndim: int) -> RuleSpec:
    """The only variant."""
    return SPEC
