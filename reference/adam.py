"""Adam: the gradient's moving average over the square root of its square's."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import Array, Pair, Shape, State
from .hyper import AMSGRAD, BETAS, COUPLED_DECAY, EPS, LR

NAME = "Adam"
HYPERPARAMETERS = (LR, BETAS, EPS, COUPLED_DECAY, AMSGRAD)


def init_state(shape: Shape, *, amsgrad: bool = False, **_: Any) -> State:
    """`exp_avg`, `exp_avg_sq` and, with amsgrad, `max_exp_avg_sq`: zeros."""
    slots = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if amsgrad else ("exp_avg", "exp_avg_sq")
    return {slot: np.zeros(shape) for slot in slots}


def update(
    param: Array,
    grad: Array,
    state: State,
    step: int,
    *,
    lr: float,
    betas: Pair,
    eps: float,
    weight_decay: float,
    amsgrad: bool,
) -> tuple[Array, State]:
    """One step of Adam.

        g ← g + λθ
        m ← β1 m + (1 − β1)g,  v ← β2 v + (1 − β2)g²
        v_max ← max(v_max, v)     (amsgrad; it then replaces v below)
        θ ← θ − lr · m/(1 − β1ᵗ) / (√(v/(1 − β2ᵗ)) + eps)

    Args:
        param, grad: float64, any shape.
        state: see `init_state`.
        step: t, from 1.

    State slots (the parameter's shape, zeros):
        exp_avg: m.
        exp_avg_sq: v.
        max_exp_avg_sq: v_max; only with amsgrad.

    Source: Kingma & Ba 2014 (arXiv 1412.6980), algorithm 1; amsgrad from Reddi et al. 2018 (1904.09237), with bias
    correction, which that paper leaves out, as torch has it.
    """
    beta1, beta2 = betas
    grad = grad + weight_decay * param
    exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * grad
    exp_avg_sq = second_moment = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad**2
    new_state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if amsgrad:
        new_state["max_exp_avg_sq"] = second_moment = np.maximum(state["max_exp_avg_sq"], exp_avg_sq)

    denominator = np.sqrt(second_moment / (1 - beta2**step)) + eps
    return param - lr * (exp_avg / (1 - beta1**step)) / denominator, new_state
