"""RAdam (Liu et al. 2019)."""

from __future__ import annotations

from ..arithmetic import divide, power, square_root
from ..language import tl, triton
from ..spec import Hyper, Pass, Row, RuleSpec
from .adam import MOMENTS
from .moments import update_moments


@triton.jit
def rectified(exp_avg, exp_avg_sq, hyper):
    """a·m/(√v + eps), or a·m while the variance is intractable."""
    lr, weight_decay, beta1, gain1, beta2, gain2, avg_weight, tractable, eps = hyper
    # Where it does not count, v may have overflowed.
    return divide(avg_weight * exp_avg, tl.where(tractable == 0.0, 1.0, square_root(exp_avg_sq) + eps))


@triton.jit
def radam_rule(param, grad, state, hyper):
    """g ← g + λθ; θ ← θ − lr·u."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, beta1, gain1, beta2, gain2, avg_weight, tractable, eps = hyper
    grad = grad + weight_decay * param
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2)
    return param - lr * rectified(exp_avg, exp_avg_sq, hyper), (exp_avg, exp_avg_sq)


@triton.jit
def decoupled_rule(param, grad, state, hyper):
    """θ ← θ − lr(u + λθ)."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, beta1, gain1, beta2, gain2, avg_weight, tractable, eps = hyper
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2)
    return param - lr * (rectified(exp_avg, exp_avg_sq, hyper) + weight_decay * param), (exp_avg, exp_avg_sq)


@triton.jit
def scalars(hyper, step, counters):
    """Rectifies from the first step at which ρ_t > threshold."""
    lr, weight_decay, eps, threshold, beta1, beta2 = hyper
    bias_correction1, bias_correction2 = 1.0 - power(beta1, step), 1.0 - power(beta2, step)
    rho_limit = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_limit - 2.0 * step * power(beta2, step) / bias_correction2
    tractable = rho > threshold
    excess = (rho - 4.0) * (rho - 2.0) * rho_limit / ((rho_limit - 4.0) * (rho_limit - 2.0) * rho)
    rectification = tl.sqrt(tl.where(tractable, excess * bias_correction2, 1.0))
    avg_weight = rectification / bias_correction1
    flag = tl.where(tractable, 1.0, 0.0)
    return (lr, weight_decay, beta1, 1.0 - beta1, beta2, 1.0 - beta2, avg_weight, flag, eps), counters


NAMES = ("lr", "weight_decay", "beta1", "gain1", "beta2", "gain2", "avg_weight", "tractable", "eps")
ROW = Row(NAMES, ("weight_decay", "eps", "threshold", "betas"), scalars)
COUPLED = RuleSpec("radam", MOMENTS, (Pass(radam_rule, ("param", *MOMENTS)),), ROW)
DECOUPLED = RuleSpec("radam_decoupled", MOMENTS, (Pass(decoupled_rule, ("param", *MOMENTS)),), ROW)
SPECS = (COUPLED, DECOUPLED)


def select(hyper: Hyper, ndim: int) -> RuleSpec:
    """The rule with the weight decay that is asked for."""
    return DECOUPLED if hyper["decoupled_weight_decay"] else COUPLED
