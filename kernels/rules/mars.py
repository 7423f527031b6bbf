"""MARS (Yuan et al. 2024): AdamW on a variance-reduced gradient, clipped to unit norm per tensor."""

from __future__ import annotations

import triton
import triton.language as tl

from ..arithmetic import divide, square_root
from ..spec import Counters, Hyper, Pass, RuleSpec
from .moments import adam_direction, adam_scalars, update_moments


@triton.jit
def corrected_gradient(grad, last_grad, correction):
    """c = g + gamma·β1/(1−β1)·(g − last_grad)."""
    return grad + correction * (grad - last_grad)


@triton.jit
def mars_norm_rule(param, grad, state, hyper):
    """First pass: the terms of ‖c‖²."""
    corrected = corrected_gradient(grad, state[2], hyper[9])
    return param, state, (corrected * corrected,)


@triton.jit
def mars_step(param, grad, corrected, state, hyper):
    """AdamW on c; last_grad ← g."""
    exp_avg, exp_avg_sq = state[0], state[1]
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, correction1, correction2 = hyper[:9]
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, corrected, beta1, gain1, beta2, gain2)
    update = adam_direction(exp_avg, exp_avg_sq, correction1, correction2, eps)
    return param - lr * (update + weight_decay * param), (exp_avg, exp_avg_sq, grad)


@triton.jit
def mars_clipped_rule(param, grad, state, hyper):
    """Second pass: c ← c/‖c‖ if ‖c‖ > 1, then AdamW on c."""
    corrected = corrected_gradient(grad, state[2], hyper[9])
    norm = square_root(hyper[10])
    corrected = divide(corrected, tl.where(norm > 1.0, norm, 1.0))
    return mars_step(param, grad, corrected, state, hyper)


@triton.jit
def mars_unclipped_rule(param, grad, state, hyper):
    """The only pass without clipping."""
    return mars_step(param, grad, corrected_gradient(grad, state[2], hyper[9]), state, hyper)


def scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    beta1 = hyper["betas"][0]
    return *adam_scalars(hyper, step, counters), hyper["gamma"] * beta1 / (1.0 - beta1)


_SLOTS = ("exp_avg", "exp_avg_sq", "last_grad")
_WRITES = ("param", *_SLOTS)
CLIPPED = RuleSpec("mars", _SLOTS, (Pass(mars_norm_rule, (), sums=1), Pass(mars_clipped_rule, _WRITES)), scalars)
UNCLIPPED = RuleSpec("mars_unclipped", _SLOTS, (Pass(mars_unclipped_rule, _WRITES),), scalars)
SPECS = (CLIPPED, UNCLIPPED)


def select(hyper: Hyper, ndim: int) -> RuleSpec:
    """The variant that these hyperparameters ask for."""
    return CLIPPED if hyper["clip_c"] else UNCLIPPED
