"""LAMB: AdamW whose step in each tensor is as long as the tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .arrays import Array, Pair, Shape, State
from .hyper import BETAS, DECOUPLED_DECAY, EPS, LR, Hyper

NAME = "LAMB"
HYPERPARAMETERS = (
    LR,
    BETAS,
    EPS.with_default(1e-6),
    replace(DECOUPLED_DECAY, doc="part of the update before it is made as long as the tensor"),
    Hyper("bias_correction", True, kind="bool", doc="divide the moments by 1 − βᵗ"),
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
    eps: float,
    weight_decay: float,
    bias_correction: bool,
) -> tuple[Array, State]:
    """One step of LAMB.

        m ← β1 m + (1 − β1)g,  v ← β2 v + (1 − β2)g²
        m̂ = m/(1 − β1ᵗ),  v̂ = v/(1 − β2ᵗ)     (bias_correction; m and v themselves without)
        u = m̂/(√v̂ + eps) + λθ
        θ ← θ − lr · ‖θ‖/‖u‖ · u     (1 for ‖θ‖/‖u‖ if either norm is 0)

    Args:
        param, grad: float64, any shape.
        state: see `init_state`.
        step: t, from 1.

    State slots (the parameter's shape, zeros):
        exp_avg: m.
        exp_avg_sq: v.

    Source: You et al. 2019 (arXiv 1904.00962), algorithm 2 with φ(z) = z.
    """
    beta1, beta2 = betas
    exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * grad
    exp_avg_sq = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad**2
    correction1, correction2 = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)

    direction = exp_avg / correction1 / (np.sqrt(exp_avg_sq / correction2) + eps) + weight_decay * param
    param_norm, direction_norm = np.linalg.norm(param), np.linalg.norm(direction)
    trust = 1.0 if param_norm == 0 or direction_norm == 0 else param_norm / direction_norm
    return param - lr * trust * direction, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
