"""RAdam (Liu et al. 2019)."""

from __future__ import annotations

from ..arithmetic import divide, power, square_root
from ..language import tl, triton
from ..spec import Pass, Row, RuleSpec
from .adam import MOMENTS
from .moments import update_moments


@triton.jit
def radam_rule(param, grad, state, hyper):
    """g ← g + λθ; θ ← θ − lr·a·m/(b√v + c); b = 0 and c = 1 while the variance is intractable."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, beta1, gain1, beta2, gain2, avg_weight, root_weight, offset = hyper
    grad = grad + weight_decay * param
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2)
    denominator = root_weight * square_root(exp_avg_sq) + offset
    # While b is 0 a v that has overflowed must not count.
    update = divide(avg_weight * exp_avg, tl.where(root_weight == 0.0, offset, denominator))
    return param - lr * update, (exp_avg, exp_avg_sq)


@triton.jit
def scalars(hyper, step, counters):
    """Rectifies from the first step at which ρ_t > 4."""
    lr, weight_decay, eps, beta1, beta2 = hyper
    bias_correction1, bias_correction2 = 1.0 - power(beta1, step), 1.0 - power(beta2, step)
    rho_limit = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_limit - 2.0 * step * power(beta2, step) / bias_correction2
    tractable = rho > 4.0
    excess = (rho - 4.0) * (rho - 2.0) * rho_limit / ((rho_limit - 4.0) * (rho_limit - 2.0) * rho)
    rectification = tl.sqrt(tl.where(tractable, excess, 1.0))
    avg_weight = rectification / bias_correction1
    root_weight = tl.where(tractable, 1.0 / tl.sqrt(bias_correction2), 0.0)
    offset = tl.where(tractable, eps, 1.0)
    return (lr, weight_decay, beta1, 1.0 - beta1, beta2, 1.0 - beta2, avg_weight, root_weight, offset), counters


NAMES = ("lr", "weight_decay", "beta1", "gain1", "beta2", "gain2", "avg_weight", "root_weight", "offset")
ROW = Row(NAMES, ("weight_decay", "eps", "betas"), scalars)
SPECS = (RuleSpec("radam", MOMENTS, (Pass(radam_rule, ("param", *MOMENTS)),), ROW),)
