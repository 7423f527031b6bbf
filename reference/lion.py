"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .arrays import Array, Pair, Shape, State
from .hyper import BETAS, DECOUPLED_DECAY, LR

NAME = "Lion"
HYPERPARAMETERS = (
    LR.with_default(1e-4),
    replace(BETAS, default=(0.9, 0.99), doc="weight of the momentum in the step, and its decay rate"),
    DECOUPLED_DECAY.with_default(0.0),
)


def init_state(shape: Shape, **_: Any) -> State:
    """`exp_avg`: zeros."""
    return {"exp_avg": np.zeros(shape)}


def update(
    param: Array, grad: Array, state: State, step: int, *, lr: float, betas: Pair, weight_decay: float
) -> tuple[Array, State]:
    """One step of Lion.

        c = β1 m + (1 − β1)g
        θ ← θ − lr(sign(c) + λθ)     (sign(0) = 0)
        m ← β2 m + (1 − β2)g

    Args:
        param, grad: float64, any shape.
        state: see `init_state`.
        step: not used.

    State slots:
        exp_avg: m, the parameter's shape, zeros.

    Source: Chen et al. 2023 (arXiv 2302.06675), algorithm 2.
    """
    beta1, beta2 = betas
    direction = np.sign(beta1 * state["exp_avg"] + (1 - beta1) * grad)
    exp_avg = beta2 * state["exp_avg"] + (1 - beta2) * grad
    return param - lr * (direction + weight_decay * param), {"exp_avg": exp_avg}
