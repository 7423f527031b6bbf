"""LAMB (You et al. 2019): AdamW's direction, scaled per tensor by ‖θ‖/‖u‖."""

from __future__ import annotations

import triton
import triton.language as tl

from ..arithmetic import divide, square_root
from ..spec import Counters, Hyper, Pass, RuleSpec
from .adam import MOMENTS
from .moments import adam_direction, corrections, moment_scalars, update_moments


@triton.jit
def lamb_direction(param, exp_avg, exp_avg_sq, weight_decay, eps, correction1, correction2):
    """u = m̂/(√v̂ + eps) + λθ."""
    return adam_direction(exp_avg, exp_avg_sq, correction1, correction2, eps) + weight_decay * param


@triton.jit
def lamb_moments_rule(param, grad, state, hyper):
    """First pass: the moments, and the terms of ‖θ‖² and ‖u‖²."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, correction1, correction2 = hyper
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2)
    update = lamb_direction(param, exp_avg, exp_avg_sq, weight_decay, eps, correction1, correction2)
    return param, (exp_avg, exp_avg_sq), (param * param, update * update)


@triton.jit
def lamb_update_rule(param, grad, state, hyper):
    """Second pass: u again from the stored moments; θ ← θ − lr·(‖θ‖/‖u‖)·u, the ratio 1 if either norm is 0."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, correction1, correction2, param_sq, update_sq, numel = hyper
    update = lamb_direction(param, exp_avg, exp_avg_sq, weight_decay, eps, correction1, correction2)
    ratio = divide(square_root(param_sq), square_root(update_sq))
    trust = tl.where((param_sq == 0.0) | (update_sq == 0.0), 1.0, ratio)
    return param - lr * trust * update, (exp_avg, exp_avg_sq)


def scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    betas = hyper["betas"]
    correction = corrections(betas, step) if hyper["bias_correction"] else (1.0, 1.0)
    return hyper["lr"], hyper["weight_decay"], hyper["eps"], *moment_scalars(betas), *correction


SPEC = RuleSpec(
    "lamb", MOMENTS, (Pass(lamb_moments_rule, MOMENTS, sums=2), Pass(lamb_update_rule, ("param",))), scalars
)
SPECS = (SPEC,)


def select(hyper: Hyper, ndim: int) -> RuleSpec:
    """The only variant."""
    return SPEC
