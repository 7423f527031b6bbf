"""Sophia (Liu et al. 2023): the step, and the moving average of the Hessian's diagonal."""

from __future__ import annotations

import triton
import triton.language as tl

from ..arithmetic import divide, moving_average
from ..spec import Counters, Hyper, Pass, RuleSpec


@triton.jit
def sophia_rule(param, grad, state, hyper):
    """m ← β1 m + (1−β1)g; θ ← θ − lr(clip(m / max(gamma·h, eps), ±rho) + λθ)."""
    exp_avg, hessian = state
    lr, weight_decay, beta1, gain1, gamma, rho, eps = hyper
    exp_avg = moving_average(exp_avg, grad, beta1, gain1)
    curvature = gamma * hessian
    curvature = tl.where(curvature < eps, eps, curvature)
    update = divide(exp_avg, curvature)
    # Comparisons, not min and max: a NaN has to come through.
    update = tl.where(update > rho, rho, tl.where(update < -rho, -rho, update))
    return param - lr * (update + weight_decay * param), (exp_avg, hessian)


@triton.jit
def sophia_hessian_rule(param, grad, state, hyper):
    """h ← β2 h + (1−β2)·estimate; the estimate comes as the gradient stream."""
    exp_avg, hessian = state
    beta2, gain2 = hyper
    return param, (exp_avg, moving_average(hessian, grad, beta2, gain2))


def scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    beta1 = hyper["betas"][0]
    clip = (hyper["gamma"], hyper["rho"], hyper["eps"])
    return hyper["lr"], hyper["weight_decay"], beta1, 1.0 - beta1, *clip


def hessian_scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    beta2 = hyper["betas"][1]
    return beta2, 1.0 - beta2


_SLOTS = ("exp_avg", "hessian")
SPEC = RuleSpec("sophia", _SLOTS, (Pass(sophia_rule, ("param", "exp_avg")),), scalars)
HESSIAN = RuleSpec("sophia_hessian", _SLOTS, (Pass(sophia_hessian_rule, ("hessian",)),), hessian_scalars)
SPECS = (SPEC, HESSIAN)


def select(hyper: Hyper, ndim: int) -> RuleSpec:
    """The rule of a step; `HESSIAN` runs only from `update_hessian`."""
    return SPEC
