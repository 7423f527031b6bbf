"""What all matrix optimizers share: gathering gradients into batches, and applying the directions found."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  (the interpreter looks for it beside every JIT function)

from ..spec import Counters, Hyper, Pass, RuleSpec


@triton.jit
def gather_rule(param, grad, state, hyper):
    """The gradient, scaled, into the batch that stands in the parameter's place."""
    return grad, state


@triton.jit
def apply_rule(param, grad, state, hyper):
    """θ ← θ − lr(U + λθ), in a launch whose gradient is not used."""
    return param - hyper[0] * (state[0] + hyper[1] * param), state


def no_scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    return ()


def apply_scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(lr, λ)."""
    return hyper["lr"], hyper["weight_decay"]


GATHER = RuleSpec("gather", (), (Pass(gather_rule, ("param",)),), no_scalars)
APPLY = RuleSpec("apply", ("direction",), (Pass(apply_rule, ("param",)),), apply_scalars)
SPECS = (GATHER, APPLY)


def is_matrix(hyper: Hyper, ndim: int) -> bool:
    """Whether a parameter with so many dimensions takes the matrix rule."""
    return bool(hyper["matrix"]) and (ndim == 2 or (ndim > 2 and hyper["ndim_policy"] != "fallback"))
