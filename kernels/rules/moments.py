"""What the Adam family shares: the two moments and their bias corrections."""

from __future__ import annotations

import math

import triton
import triton.language as tl  # noqa: F401  (the interpreter looks for it beside every JIT function)

from ..arithmetic import divide, moving_average, square_root
from ..spec import Counters, Hyper


@triton.jit
def update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2):
    """m ← β1 m + (1−β1)g; v ← β2 v + (1−β2)g²."""
    return moving_average(exp_avg, grad, beta1, gain1), moving_average(exp_avg_sq, grad * grad, beta2, gain2)


@triton.jit
def adam_direction(exp_avg, exp_avg_sq, correction1, correction2, eps):
    """m̂ / (√v̂ + eps), with correction1 = 1/bc1 and correction2 = 1/√bc2."""
    return divide(exp_avg * correction1, square_root(exp_avg_sq) * correction2 + eps)


def moment_scalars(betas: tuple[float, float]) -> tuple[float, ...]:
    """(β1, 1−β1, β2, 1−β2)."""
    beta1, beta2 = betas
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2


def corrections(betas: tuple[float, float], step: int) -> tuple[float, float]:
    """(1/bc1, 1/√bc2) of Adam at this step."""
    beta1, beta2 = betas
    return 1.0 / (1.0 - beta1**step), 1.0 / math.sqrt(1.0 - beta2**step)


def adam_scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(lr, λ, eps, β1, 1−β1, β2, 1−β2, 1/bc1, 1/√bc2)."""
    betas = hyper["betas"]
    return hyper["lr"], hyper["weight_decay"], hyper["eps"], *moment_scalars(betas), *corrections(betas, step)
