"""NAdamW: Nesterov momentum in AdamW (Dozat 2016); with `momentum_decay`, the schedule of torch's NAdam."""

from __future__ import annotations

import math

import triton
import triton.language as tl  # noqa: F401  (the interpreter looks for it beside every JIT function)

from ..arithmetic import divide, square_root
from ..spec import Counters, Hyper, Pass, RuleSpec
from .adam import MOMENTS
from .moments import moment_scalars, update_moments


@triton.jit
def nadamw_rule(param, grad, state, hyper):
    """θ ← θ − lr((a·m + b·g)/(√v̂ + eps) + λθ), a and b from the host."""
    exp_avg, exp_avg_sq = state
    lr, weight_decay, eps, beta1, gain1, beta2, gain2, avg_weight, grad_weight, correction2 = hyper
    exp_avg, exp_avg_sq = update_moments(exp_avg, exp_avg_sq, grad, beta1, gain1, beta2, gain2)
    lookahead = avg_weight * exp_avg + grad_weight * grad
    update = divide(lookahead, square_root(exp_avg_sq) * correction2 + eps)
    return param - lr * (update + weight_decay * param), (exp_avg, exp_avg_sq)


def _scalars(hyper: Hyper, step: int, avg_weight: float, grad_weight: float) -> tuple[float, ...]:
    correction2 = 1.0 / math.sqrt(1.0 - hyper["betas"][1] ** step)
    moments = moment_scalars(hyper["betas"])
    return hyper["lr"], hyper["weight_decay"], hyper["eps"], *moments, avg_weight, grad_weight, correction2


def constant_scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """m̄ = β1·m/(1−β1^{t+1}) + (1−β1)·g/(1−β1^t)."""
    beta1 = hyper["betas"][0]
    return _scalars(hyper, step, beta1 / (1.0 - beta1 ** (step + 1)), (1.0 - beta1) / (1.0 - beta1**step))


def scheduled_scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """m̄ = μ_{t+1}·m/(1 − Π_t μ_{t+1}) + (1−μ_t)·g/(1−Π_t), with μ_t = β1(1 − ½·0.96^{tψ})."""
    beta1, decay = hyper["betas"][0], hyper["momentum_decay"]
    current = beta1 * (1.0 - 0.5 * 0.96 ** (step * decay))
    following = beta1 * (1.0 - 0.5 * 0.96 ** ((step + 1) * decay))
    counters["mu_product"] *= current
    product = counters["mu_product"]
    return _scalars(hyper, step, following / (1.0 - product * following), (1.0 - current) / (1.0 - product))


_PASSES = (Pass(nadamw_rule, ("param", *MOMENTS)),)
PLAIN = RuleSpec("nadamw", MOMENTS, _PASSES, constant_scalars)
SCHEDULED = RuleSpec("nadamw", MOMENTS, _PASSES, scheduled_scalars, counters={"mu_product": 1.0})
SPECS = (PLAIN,)


def select(hyper: Hyper, ndim: int) -> RuleSpec:
    """The variant that these hyperparameters ask for; both run the same kernel."""
    return PLAIN if hyper["momentum_decay"] is None else SCHEDULED
