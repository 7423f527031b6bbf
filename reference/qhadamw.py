"""QHAdamW: AdamW whose moments are mixed with the gradient itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import Array, Pair, Shape, State
from .hyper import BETAS, DECOUPLED_DECAY, EPS, LR, Hyper

NAME = "QHAdamW"
HYPERPARAMETERS = (
    LR,
    BETAS.with_default((0.995, 0.999)),
    Hyper(
        "nus",
        (0.7, 1.0),
        "[0, 1]",
        "floats",
        doc="weights of the two moments against the gradient; (1, 1) is AdamW",
        trial=(0.7, 0.8),  # below 1, so that no term is without effect
    ),
    EPS,
    DECOUPLED_DECAY,
)


def init_state(shape: Shape, **_: Any) -> State:
    """`exp_avg` and `exp_avg_sq`: zeros."""
    return {"exp_avg": np.zeros(shape), "exp_avg_sq": np.zeros(shape)}


def update(
    param: Array,
    grad: Array,
    state: State,
    step: int,
    *,
    lr: float,
    betas: Pair,
    nus: Pair,
    eps: float,
    weight_decay: float,
) -> tuple[Array, State]:
    """One step of QHAdamW.

        m ← β1 m + (1 − β1)g,  v ← β2 v + (1 − β2)g²,  m̂ = m/(1 − β1ᵗ),  v̂ = v/(1 − β2ᵗ)
        u = ((1 − ν1)g + ν1 m̂) / (√((1 − ν2)g² + ν2 v̂) + eps)
        θ ← θ − lr(u + λθ)

    Args:
        param, grad: float64, any shape.
        state: see `init_state`.
        step: t, from 1.

    State slots (the parameter's shape, zeros):
        exp_avg: m.
        exp_avg_sq: v.

    Source: Ma & Yarats 2019 (arXiv 1810.06801), section 4.1; the decoupled decay is AdamW's.
    """
    beta1, beta2 = betas
    nu1, nu2 = nus
    exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * grad
    exp_avg_sq = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad**2

    numerator = (1 - nu1) * grad + nu1 * exp_avg / (1 - beta1**step)
    denominator = np.sqrt((1 - nu2) * grad**2 + nu2 * exp_avg_sq / (1 - beta2**step)) + eps
    new_param = param - lr * (numerator / denominator + weight_decay * param)
    return new_param, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
