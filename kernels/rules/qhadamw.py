"""QHAdamW: quasi-hyperbolic Adam (Ma & Yarats 2019) with decoupled weight decay."""

from __future__ import annotations

from ..arithmetic import divide, power, square_root
from ..language import tl, triton
from ..spec import Pass, Row, RuleSpec
from .adam import MOMENTS
from .moments import ADAM_NAMES, update_moments


@triton.jit
def qhadamw_rule(param, grad, state, hyper):
    """u = ((1−ν1)g + ν1 m̂) / (√((1−ν2)g² + ν2 v̂) + eps); θ ← θ − lr(u + λθ)."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, avg_weight, grad_weight, sq_weight, grad_sq_weight = hyper
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2)
    numerator = avg_weight * exp_avg + grad_weight * grad
    # With ν2 = 1 a g² that overflows must not count.
    mixed_sq = tl.where(grad_sq_weight == 0.0, 0.0, grad_sq_weight * (grad * grad)) + sq_weight * exp_avg_sq
    denominator = square_root(mixed_sq) + eps
    update = divide(numerator, denominator)
    return param - lr * (update + weight_decay * param), (exp_avg, exp_avg_sq)


@triton.jit
def scalars(hyper, step, counters):
    """Folds the bias corrections into ν1 and ν2."""
    lr, weight_decay, eps, beta1, beta2, nu1, nu2 = hyper
    moments = (lr, weight_decay, eps, beta1, 1.0 - beta1, beta2, 1.0 - beta2)
    avg_weight, sq_weight = nu1 / (1.0 - power(beta1, step)), nu2 / (1.0 - power(beta2, step))
    return moments + (avg_weight, 1.0 - nu1, sq_weight, 1.0 - nu2), counters


NAMES = (*ADAM_NAMES[:7], "avg_weight", "grad_weight", "sq_weight", "grad_sq_weight")
ROW = Row(NAMES, ("weight_decay", "eps", "betas", "nus"), scalars)
SPECS = (RuleSpec("qhadamw", MOMENTS, (Pass(qhadamw_rule, ("param", *MOMENTS)),), ROW),)
