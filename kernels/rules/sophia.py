"""Sophia (Liu et al. 2023): the step, and the moving average of the Hessian's diagonal."""

from __future__ import annotations

from ..arithmetic import at_least, clip, divide, moving_average
from ..language import tl, triton  # noqa: F401  (the interpreter looks for tl beside every JIT function)
from ..spec import Pass, Row, RuleSpec


@triton.jit
def sophia_rule(param, grad, state, hyper):
    """m ← β1 m + (1−β1)g; θ ← θ − lr(clip(m / max(gamma·h, eps), ±rho) + λθ)."""
    exp_avg, hessian = state
    lr, weight_decay, beta1, gain1, gamma, rho, eps = hyper
    exp_avg = moving_average(exp_avg, grad, beta1, gain1)
    update = clip(divide(exp_avg, at_least(gamma * hessian, eps)), -rho, rho)
    return param - lr * (update + weight_decay * param), (exp_avg, hessian)


@triton.jit
def sophia_hessian_rule(param, grad, state, hyper):
    """h ← β2 h + (1−β2)·estimate; the estimate comes as the gradient stream."""
    exp_avg, hessian = state
    beta2, gain2 = hyper
    return param, (exp_avg, moving_average(hessian, grad, beta2, gain2))


@triton.jit
def scalars(hyper, step, counters):
    """(lr, λ, β1, 1−β1, gamma, rho, eps)."""
    lr, weight_decay, beta1, beta2, gamma, rho, eps = hyper
    return (lr, weight_decay, beta1, 1.0 - beta1, gamma, rho, eps), counters


@triton.jit
def hessian_scalars(hyper, step, counters):
    """(β2, 1−β2)."""
    lr, beta1, beta2 = hyper
    return (beta2, 1.0 - beta2), counters


_NAMES = ("lr", "weight_decay", "beta1", "gain1", "gamma", "rho", "eps")
ROW = Row(_NAMES, ("weight_decay", "betas", "gamma", "rho", "eps"), scalars)
HESSIAN_ROW = Row(("beta2", "gain2"), ("betas",), hessian_scalars)

_SLOTS = ("exp_avg", "hessian")
SPEC = RuleSpec("sophia", _SLOTS, (Pass(sophia_rule, ("param", "exp_avg")),), ROW)
_MIX = Pass(sophia_hessian_rule, ("hessian",), reads=("grad", "hessian"))
HESSIAN = RuleSpec("sophia_hessian", _SLOTS, (_MIX,), HESSIAN_ROW)
SPECS = (SPEC, HESSIAN)
