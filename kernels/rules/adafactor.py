"""Adafactor (Shazeer & Stern 2018): a matrix keeps row and column means of g², anything else the whole moment."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ..arithmetic import divide, moving_average, square_root
from ..spec import Counters, FactoredSpec, Hyper, Pass, RuleSpec


@triton.jit
def square(grad, hyper):
    """g² + eps1."""
    return grad * grad + hyper[2]


@triton.jit
def accumulate(variance, mean_square, hyper):
    """V ← β2_t V + (1−β2_t)·(the mean of) g² + eps1."""
    return moving_average(variance, mean_square, hyper[0], hyper[1])


@triton.jit
def factored_accumulate(variance, mean_square, hyper):
    """R (or C) as above, and 1/√R: each root on its own, since R·C underflows at eps1 = 1e-30."""
    new_variance = accumulate(variance, mean_square, hyper)
    return new_variance, divide(1.0, square_root(new_variance))


@triton.jit
def factored_direction(grad, row_factor, col_factor, row_mean, hyper):
    """u = g/√V with V = R Cᵀ/mean(R)."""
    return grad * (square_root(row_mean) * row_factor * col_factor)


@triton.jit
def direction(grad, variance):
    """u = g/√V."""
    return divide(grad, square_root(variance))


@triton.jit
def update(param, direction, direction_sq, param_sq, numel, hyper):
    """θ ← θ − α(u/max(1, RMS(u)/clip_threshold) + λθ), α = lr or ρ_t·max(eps2, RMS(θ))."""
    beta2, gain2, eps1, eps2, clip_threshold, lr, relative_lr, weight_decay = hyper
    excess = divide(square_root(divide(direction_sq, numel)), clip_threshold)
    param_rms = square_root(divide(param_sq, numel))
    # Comparisons written so that a NaN comes through.
    divisor = tl.where(excess <= 1.0, 1.0, excess)
    relative = relative_lr * tl.where(param_rms <= eps2, eps2, param_rms)
    alpha = tl.where(relative_lr == 0.0, lr, relative)
    # One division instead of one an element.
    return param - alpha * (direction * divide(1.0, divisor) + weight_decay * param)


@triton.jit
def variance_rule(param, grad, state, hyper):
    """First pass of a parameter that is not a matrix: V, and the terms of RMS(u) and RMS(θ)."""
    variance = accumulate(state[0], square(grad, hyper), hyper)
    step = direction(grad, variance)
    return param, (variance,), (step * step, param * param)


@triton.jit
def variance_update_rule(param, grad, state, hyper):
    """Second pass: u again from the stored V."""
    new_param = update(param, direction(grad, state[0]), hyper[8], hyper[9], hyper[10], hyper[:8])
    return new_param, state


def scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(β2_t, 1−β2_t, eps1, eps2, clip_threshold, lr, relative lr, λ); one of the two rates is 0."""
    gain2 = float(step) ** hyper["beta2_decay"]
    lr, relative_lr = hyper["lr"], 0.0
    if lr is None:
        lr, relative_lr = 0.0, hyper["lr_scale"] * min(1e-2, 1.0 / math.sqrt(step))
    return 1.0 - gain2, gain2, *hyper["eps"], hyper["clip_threshold"], lr, relative_lr, hyper["weight_decay"]


VARIANCE = RuleSpec(
    "adafactor_variance",
    ("variance",),
    (Pass(variance_rule, ("variance",), sums=2), Pass(variance_update_rule, ("param",))),
    scalars,
)
FACTORED = FactoredSpec("adafactor", square, factored_accumulate, factored_direction, update, scalars)
SPECS = (FACTORED, VARIANCE)


def select(hyper: Hyper, ndim: int) -> RuleSpec | FactoredSpec:
    """Factored for a matrix, the whole moment otherwise."""
    return FACTORED if ndim == 2 else VARIANCE
