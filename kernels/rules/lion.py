"""Lion (Chen et al. 2023)."""

from __future__ import annotations

import triton
import triton.language as tl

from ..arithmetic import moving_average
from ..spec import Counters, Hyper, Pass, RuleSpec
from .moments import moment_scalars


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


def scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    return hyper["lr"], hyper["weight_decay"], *moment_scalars(hyper["betas"])


SPEC = RuleSpec("lion", ("exp_avg",), (Pass(lion_rule, ("param", "exp_avg")),), scalars)
SPECS = (SPEC,)


def select(hyper: Hyper, ndim: int) -> RuleSpec:
    """The only variant."""
    return SPEC
