"""What the Adam family shares: the two moments and their bias corrections."""

from __future__ import annotations

from ..arithmetic import divide, moving_average, power, square_root
from ..language import tl, triton
from ..spec import Row


@triton.jit
def update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2):
    """m ← β1 m + (1−β1)g; v ← β2 v + (1−β2)g²."""
    return moving_average(exp_avg, grad, beta1, gain1), moving_average(exp_avg_sq, grad * grad, beta2, gain2)


@triton.jit
def adam_direction(exp_avg, exp_avg_sq, correction1, correction2, eps):
    """m̂ / (√v̂ + eps), with correction1 = 1/bc1 and correction2 = 1/√bc2."""
    return divide(exp_avg * correction1, square_root(exp_avg_sq) * correction2 + eps)


@triton.jit
def corrections(beta1, beta2, step):
    """(1/bc1, 1/√bc2) of Adam at this step."""
    return 1.0 / (1.0 - power(beta1, step)), 1.0 / tl.sqrt(1.0 - power(beta2, step))


@triton.jit
def adam_scalars(hyper, step, counters):
    """As Adam's row has them."""
    lr, weight_decay, eps, beta1, beta2 = hyper
    correction1, correction2 = corrections(beta1, beta2, step)
    return (lr, weight_decay, eps, beta1, 1.0 - beta1, beta2, 1.0 - beta2, correction1, correction2), counters


# gain = 1 − β, correction1 = 1/bc1, correction2 = 1/√bc2
ADAM_NAMES = ("lr", "weight_decay", "eps", "beta1", "gain1", "beta2", "gain2", "correction1", "correction2")
ADAM_ROW = Row(ADAM_NAMES, ("weight_decay", "eps", "betas"), adam_scalars)
