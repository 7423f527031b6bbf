"""MARS: AdamW on a gradient whose variance the previous one reduces."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import Array, Pair, Shape, State
from .hyper import BETAS, DECOUPLED_DECAY, EPS, LR, Hyper

NAME = "MARS"
HYPERPARAMETERS = (
    LR.with_default(3e-3),
    BETAS.with_default((0.95, 0.99)),
    EPS,
    DECOUPLED_DECAY.with_default(0.0),
    Hyper("gamma", 0.025, doc="strength of the variance reduction; 0 is AdamW on the clipped gradient", trial=1.0),
    Hyper("clip_c", True, kind="bool", doc="scale the corrected gradient of a tensor to a norm of at most 1"),
)


def init_state(shape: Shape, **_: Any) -> State:
    """`exp_avg`, `exp_avg_sq` and `last_grad`: zeros."""
    return {slot: np.zeros(shape) for slot in ("exp_avg", "exp_avg_sq", "last_grad")}


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
    gamma: float,
    clip_c: bool,
) -> tuple[Array, State]:
    """One step of MARS.

        c = g + gamma · β1/(1 − β1) · (g − g_last),  g_last ← g
        c ← c/‖c‖  if clip_c and ‖c‖ > 1
        m ← β1 m + (1 − β1)c,  v ← β2 v + (1 − β2)c²
        u = m/(1 − β1ᵗ) / (√(v/(1 − β2ᵗ)) + eps)
        θ ← θ − lr(u + λθ)

    Args:
        param, grad: float64, any shape.
        state: see `init_state`.
        step: t, from 1.

    State slots (the parameter's shape, zeros):
        exp_avg: m.
        exp_avg_sq: v.
        last_grad: g_last, so that the first step takes c = (1 + gamma · β1/(1 − β1))g.

    Source: Yuan et al. 2024 (arXiv 2411.10438), MARS-AdamW in its approximate form: g_last is the previous step's
    gradient, where the exact form takes this batch's gradient at the previous parameters.
    """
    beta1, beta2 = betas
    corrected = grad + gamma * beta1 / (1 - beta1) * (grad - state["last_grad"])
    norm = np.linalg.norm(corrected)
    if clip_c and norm > 1:
        corrected = corrected / norm
    exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * corrected
    exp_avg_sq = beta2 * state["exp_avg_sq"] + (1 - beta2) * corrected**2

    direction = exp_avg / (1 - beta1**step) / (np.sqrt(exp_avg_sq / (1 - beta2**step)) + eps)
    new_param = param - lr * (direction + weight_decay * param)
    return new_param, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "last_grad": grad.copy()}
