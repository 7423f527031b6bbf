"""SGD (Polyak 1964, Nesterov 1983)."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  (the interpreter looks for it beside every JIT function)

from ..spec import Counters, Hyper, Pass, RuleSpec


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


def plain_scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    return hyper["lr"], hyper["weight_decay"]


def momentum_scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    gain = 1.0 if step == 1 else 1.0 - hyper["dampening"]
    return hyper["lr"], hyper["weight_decay"], hyper["momentum"], gain


_BUFFER = ("momentum_buffer",)
_WRITES = ("param", "momentum_buffer")
PLAIN = RuleSpec("sgd", (), (Pass(sgd_rule, writes=("param",)),), plain_scalars)
MOMENTUM = RuleSpec("sgd_momentum", _BUFFER, (Pass(sgd_momentum_rule, _WRITES),), momentum_scalars)
NESTEROV = RuleSpec("sgd_nesterov", _BUFFER, (Pass(sgd_nesterov_rule, _WRITES),), momentum_scalars)
SPECS = (PLAIN, MOMENTUM, NESTEROV)


def select(hyper: Hyper, ndim: int) -> RuleSpec:
    """The variant that these hyperparameters ask for."""
    if hyper["momentum"] == 0.0:
        return PLAIN
    return NESTEROV if hyper["nesterov"] else MOMENTUM
