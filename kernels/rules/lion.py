"""Lion (Chen et al. 2023)."""

from __future__ import annotations

from ..arithmetic import moving_average
from ..language import tl, triton
from ..spec import Pass, Row, RuleSpec


@triton.jit
def sign(x):
    """−1, 0 or 1; NaN stays NaN."""
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x))


@triton.jit
def lion_rule(param, grad, state, hyper):
    """θ ← θ − lr(sign(β1 m + (1−β1)g) + λθ); m ← β2 m + (1−β2)g."""
    (exp_avg,) = state
    lr, weight_decay, beta1, gain1, beta2, gain2 = hyper
    update = sign(moving_average(exp_avg, grad, beta1, gain1))
    return param - lr * (update + weight_decay * param), (moving_average(exp_avg, grad, beta2, gain2),)


@triton.jit
def scalars(hyper, step, counters):
    """(lr, λ, β1, 1−β1, β2, 1−β2)."""
    lr, weight_decay, beta1, beta2 = hyper
    return (lr, weight_decay, beta1, 1.0 - beta1, beta2, 1.0 - beta2), counters


ROW = Row(("lr", "weight_decay", "beta1", "gain1", "beta2", "gain2"), ("weight_decay", "betas"), scalars)
SPECS = (RuleSpec("lion", ("exp_avg",), (Pass(lion_rule, ("param", "exp_avg")),), ROW),)
