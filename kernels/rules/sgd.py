"""SGD (Polyak 1964, Nesterov 1983)."""

from __future__ import annotations

from ..language import tl, triton
from ..spec import Hyper, Pass, Row, RuleSpec


@triton.jit
def sgd_rule(param, grad, state, hyper):
    """θ ← θ − lr(g + λθ)."""
    lr, weight_decay = hyper
    return param - lr * (grad + weight_decay * param), state


@triton.jit
def sgd_momentum_rule(param, grad, state, hyper):
    """b ← μb + (1−dampening)(g + λθ); θ ← θ − lr·b."""
    (momentum_buffer,) = state
    lr, weight_decay, momentum, gain = hyper
    grad = grad + weight_decay * param
    momentum_buffer = momentum * momentum_buffer + gain * grad
    return param - lr * momentum_buffer, (momentum_buffer,)


@triton.jit
def sgd_nesterov_rule(param, grad, state, hyper):
    """b ← μb + (1−dampening)(g + λθ); θ ← θ − lr(g + λθ + μb)."""
    (momentum_buffer,) = state
    lr, weight_decay, momentum, gain = hyper
    grad = grad + weight_decay * param
    momentum_buffer = momentum * momentum_buffer + gain * grad
    return param - lr * (grad + momentum * momentum_buffer), (momentum_buffer,)


@triton.jit
def plain_scalars(hyper, step, counters):
    """(lr, λ)."""
    return hyper, counters


@triton.jit
def momentum_scalars(hyper, step, counters):
    """(lr, λ, μ, 1 − dampening), the last 1 in the first step."""
    lr, weight_decay, momentum, dampening = hyper
    return (lr, weight_decay, momentum, tl.where(step == 1.0, 1.0, 1.0 - dampening)), counters


ROW = Row(("lr", "weight_decay"), ("weight_decay",), plain_scalars)
_INPUTS = ("weight_decay", "momentum", "dampening")
MOMENTUM_ROW = Row(("lr", "weight_decay", "momentum", "gain"), _INPUTS, momentum_scalars)

_BUFFER = ("momentum_buffer",)
_WRITES = ("param", "momentum_buffer")
PLAIN = RuleSpec("sgd", (), (Pass(sgd_rule, writes=("param",)),), ROW)
MOMENTUM = RuleSpec("sgd_momentum", _BUFFER, (Pass(sgd_momentum_rule, _WRITES),), MOMENTUM_ROW)
NESTEROV = RuleSpec("sgd_nesterov", _BUFFER, (Pass(sgd_nesterov_rule, _WRITES),), MOMENTUM_ROW)
SPECS = (PLAIN, MOMENTUM, NESTEROV)


def select(hyper: Hyper, ndim: int) -> RuleSpec:
    """The variant that these hyperparameters ask for."""
    if hyper["momentum"] == 0.0:
        return PLAIN
    return NESTEROV if hyper["nesterov"] else MOMENTUM
