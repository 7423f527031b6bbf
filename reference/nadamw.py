"""NAdamW: AdamW with Nesterov's look-ahead in the first moment."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import Array, Pair, Shape, State
from .hyper import BETAS, DECOUPLED_DECAY, EPS, LR, Hyper

NAME = "NAdamW"
HYPERPARAMETERS = (
    LR.with_default(2e-3),
    BETAS,
    EPS,
    DECOUPLED_DECAY,
    Hyper("momentum_decay", None, optional=True, doc="ψ of the warm-up of β1; None keeps β1 constant", switch=0.9),
)
SCALAR_SLOTS = ("mu_product",)  # one number a parameter, kept in float64 whatever format the state has


def init_state(shape: Shape, *, momentum_decay: float | None = None, **_: Any) -> State:
    """`exp_avg` and `exp_avg_sq`: zeros. With momentum_decay, `mu_product`: the number one, 0-d."""
    state = {"exp_avg": np.zeros(shape), "exp_avg_sq": np.zeros(shape)}
    return state if momentum_decay is None else {**state, "mu_product": np.ones(())}


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
    momentum_decay: float | None,
) -> tuple[Array, State]:
    """One step of NAdamW.

        m ← β1 m + (1 − β1)g,  v ← β2 v + (1 − β2)g²
        m̄ = β1 · m/(1 − β1ᵗ⁺¹) + (1 − β1) · g/(1 − β1ᵗ)
        θ ← θ − lr(m̄ / (√(v/(1 − β2ᵗ)) + eps) + λθ)

    With momentum_decay ψ the weight of the look-ahead follows a schedule:

        μ_t = β1(1 − ½·0.96^(tψ)),  Π_t = μ_1 ⋯ μ_t
        m̄ = μ_{t+1} · m/(1 − Π_{t+1}) + (1 − μ_t) · g/(1 − Π_t)

    Args:
        param, grad: float64, any shape.
        state: see `init_state`.
        step: t, from 1.

    State slots:
        exp_avg: m, the parameter's shape, zeros.
        exp_avg_sq: v, the parameter's shape, zeros.
        mu_product: Π, 0-d, one; only with momentum_decay.

    Source: Dozat 2016, "Incorporating Nesterov Momentum into Adam", whose schedule momentum_decay is; as in torch, m
    itself decays at the constant β1. The decoupled decay is AdamW's.
    """
    beta1, beta2 = betas
    exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * grad
    exp_avg_sq = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad**2
    new_state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}

    if momentum_decay is None:
        look_ahead = beta1 * exp_avg / (1 - beta1 ** (step + 1)) + (1 - beta1) * grad / (1 - beta1**step)
    else:
        mu = beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay))
        mu_next = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * momentum_decay))
        new_state["mu_product"] = mu_product = state["mu_product"] * mu
        look_ahead = mu_next * exp_avg / (1 - mu_product * mu_next) + (1 - mu) * grad / (1 - mu_product)

    direction = look_ahead / (np.sqrt(exp_avg_sq / (1 - beta2**step)) + eps)
    return param - lr * (direction + weight_decay * param), new_state
