"""What all matrix optimizers share: gathering gradients into batches, and applying the directions found."""

from __future__ import annotations

from ..language import tl, triton  # noqa: F401  (the interpreter looks for tl beside every JIT function)
from ..spec import Hyper, Pass, Row, RuleSpec


@triton.jit
def gather_rule(param, grad, state, hyper):
    """The gradient, scaled, into the batch that stands in the parameter's place."""
    return grad, state


@triton.jit
def apply_rule(param, grad, state, hyper):
    """θ ← θ − lr(U + λθ), in a launch whose gradient is not used."""
    (direction,) = state
    lr, weight_decay = hyper
    return param - lr * (direction + weight_decay * param), state


IN_WORKSPACE = (("param", "workspace"),)
GATHER = RuleSpec("gather", (), (Pass(gather_rule, ("param",), reads=("grad",)),), Row(()), offsets=IN_WORKSPACE)
APPLY = RuleSpec(
    "apply",
    ("direction",),
    (Pass(apply_rule, ("param",), reads=("param", "direction")),),
    Row(("lr", "weight_decay")),
    offsets=(("direction", "workspace"),),
)


def is_matrix(hyper: Hyper, ndim: int) -> bool:
    """Whether a parameter with so many dimensions takes the matrix rule."""
    return bool(hyper["matrix"]) and (ndim == 2 or (ndim > 2 and hyper["ndim_policy"] != "fallback"))
