"""SGD with momentum, in the heavy-ball or Nesterov form."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import Array, Shape, State
from .hyper import COUPLED_DECAY, LR, Hyper

NAME = "SGD"
HYPERPARAMETERS = (
    LR,
    Hyper("momentum", 0.0, "[0, 1)", doc="decay rate of the momentum buffer; 0 keeps none", switch=0.9),
    Hyper("dampening", 0.0, "[0, 1]", doc="share of the gradient kept out of the buffer", switch=0.9, needs="momentum"),
    COUPLED_DECAY,
    Hyper("nesterov", False, kind="bool", doc="look one momentum step ahead"),
)


def check(hyper: dict[str, Any]) -> None:
    """Nesterov's form is defined only with momentum and without dampening."""
    momentum, dampening = hyper["momentum"], hyper["dampening"]
    if hyper["nesterov"] and (momentum == 0 or dampening != 0):
        raise ValueError(
            f"{NAME}: nesterov needs momentum > 0 and dampening = 0, got momentum={momentum}, dampening={dampening}"
        )


def init_state(shape: Shape, *, momentum: float = 0.0, **_: Any) -> State:
    """`momentum_buffer` zeros, with momentum; nothing without."""
    return {"momentum_buffer": np.zeros(shape)} if momentum else {}


def update(
    param: Array,
    grad: Array,
    state: State,
    step: int,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
) -> tuple[Array, State]:
    """One step of SGD.

        g ← g + λθ
        b ← μb + (1 − dampening)g     (first step: b = g)
        u = g + μb  if nesterov,  b  otherwise     (μ = 0: u = g)
        θ ← θ − lr·u

    Args:
        param, grad: float64, any shape.
        state: see `init_state`.
        step: from 1.

    State slots:
        momentum_buffer: b, the parameter's shape, zeros; only with momentum.

    Source: Polyak 1964; Nesterov 1983. In torch's form: lr multiplies the buffer rather than entering it, and the first
    step is not dampened.
    """
    grad = grad + weight_decay * param
    if momentum == 0:
        return param - lr * grad, {}
    momentum_buffer = grad if step == 1 else momentum * state["momentum_buffer"] + (1 - dampening) * grad
    direction = grad + momentum * momentum_buffer if nesterov else momentum_buffer
    return param - lr * direction, {"momentum_buffer": momentum_buffer}
