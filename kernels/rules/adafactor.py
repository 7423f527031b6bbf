"""Adafactor (Shazeer & Stern 2018): a matrix keeps row and column means of g², anything else the whole moment."""

from __future__ import annotations

from ..arithmetic import at_least, divide, moving_average, square_root
from ..language import tl, triton
from ..spec import FactoredSpec, Hyper, Pass, Row, RuleSpec


@triton.jit
def square(grad, hyper):
    """g² + eps1."""
    beta2, gain2, eps1, eps2, clip_threshold, lr, relative_lr, weight_decay = hyper
    return grad * grad + eps1


@triton.jit
def accumulate(variance, mean_square, hyper):
    """V ← β2_t V + (1−β2_t)·(the mean of) g² + eps1."""
    beta2, gain2, eps1, eps2, clip_threshold, lr, relative_lr, weight_decay = hyper
    return moving_average(variance, mean_square, beta2, gain2)


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
    alpha = tl.where(relative_lr == 0.0, lr, relative_lr * at_least(param_rms, eps2))
    # One division instead of one an element.
    return param - alpha * (direction * divide(1.0, at_least(excess, 1.0)) + weight_decay * param)


@triton.jit
def variance_rule(param, grad, state, hyper):
    """First pass of a parameter that is not a matrix: V, and the terms of RMS(u) and RMS(θ)."""
    variance = accumulate(state[0], square(grad, hyper), hyper)
    step = direction(grad, variance)
    return param, (variance,), (step * step, param * param)


@triton.jit
def variance_update_rule(param, grad, state, hyper):
    """Second pass: u again from the stored V."""
    beta2, gain2, eps1, eps2, clip_threshold, lr, relative_lr, weight_decay, direction_sq, param_sq, numel = hyper
    row = (beta2, gain2, eps1, eps2, clip_threshold, lr, relative_lr, weight_decay)
    return update(param, direction(grad, state[0]), direction_sq, param_sq, numel, row), state


@triton.jit
def scalars(hyper, step, counters):
    """(β2_t, 1−β2_t, eps1, eps2, clip_threshold, lr, relative lr, λ); one of the two rates is 0."""
    lr, weight_decay, beta2_decay, eps1, eps2, clip_threshold, most = hyper
    gain2 = tl.exp(beta2_decay * tl.log(step))
    bound = 1.0 / tl.sqrt(step)
    relative_lr = tl.where(lr < 0.0, -lr * tl.where(bound < most, bound, most), 0.0)
    given_lr = tl.where(lr < 0.0, 0.0, lr)
    return (1.0 - gain2, gain2, eps1, eps2, clip_threshold, given_lr, relative_lr, weight_decay), counters


NAMES = ("beta2", "gain2", "eps1", "eps2", "clip_threshold", "lr", "relative_lr", "weight_decay")
INPUTS = ("weight_decay", "beta2_decay", "eps", "clip_threshold")
ROW = Row(NAMES, INPUTS, scalars, constants=(1e-2,))
_PASSES = (Pass(variance_rule, ("variance",), sums=2), Pass(variance_update_rule, ("param",)))
VARIANCE = RuleSpec("adafactor_variance", ("variance",), _PASSES, ROW)
FACTORED = FactoredSpec("adafactor", square, factored_accumulate, factored_direction, update, ROW)
SPECS = (FACTORED, VARIANCE)


def select(hyper: Hyper, ndim: int) -> RuleSpec | FactoredSpec:
    """Factored for a matrix, the whole moment otherwise."""
    return FACTORED if ndim == 2 else VARIANCE
