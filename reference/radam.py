"""RAdam: Adam that waits until its second moment is worth dividing by."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import Array, Pair, Shape, State
from .hyper import BETAS, COUPLED_DECAY, EPS, LR, Hyper

NAME = "RAdam"
HYPERPARAMETERS = (
    LR,
    BETAS,
    EPS,
    COUPLED_DECAY,
    Hyper(
        "decoupled_weight_decay",
        False,
        kind="bool",
        doc="the parameter shrinks by lr * weight_decay of itself, and the gradient stays",
    ),
    Hyper("threshold", 5.0, "[4, inf)", doc="ρ_t above which the second moment is divided by"),
)
REVISION = 2, "a threshold of 4, and eps beside √v̂"  # of the rule, and what the one before had


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
    decoupled_weight_decay: bool,
    threshold: float,
) -> tuple[Array, State]:
    """One step of RAdam.

        g ← g + λθ,  or  θ ← θ − lr·λθ  decoupled
        m ← β1 m + (1 − β1)g,  v ← β2 v + (1 − β2)g²,  m̂ = m/(1 − β1ᵗ)
        ρ∞ = 2/(1 − β2) − 1,  ρ_t = ρ∞ − 2tβ2ᵗ/(1 − β2ᵗ)
        u = r·m̂·√(1 − β2ᵗ)/(√v + eps)  if ρ_t > threshold,  m̂  otherwise
            r² = (ρ_t − 4)(ρ_t − 2)ρ∞ / ((ρ∞ − 4)(ρ∞ − 2)ρ_t)
        θ ← θ − lr·u

    Args:
        param, grad: float64, any shape.
        state: see `init_state`.
        step: t, from 1.

    State slots (the parameter's shape, zeros):
        exp_avg: m.
        exp_avg_sq: v.

    Source: Liu et al. 2019 (arXiv 1908.03265), algorithm 2, in torch's form: a threshold of 5, as in the authors' code
    (4 in the paper), eps beside the √v that is not corrected, which the paper leaves out, and either weight decay.
    """
    beta1, beta2 = betas
    if decoupled_weight_decay:
        param = param - lr * weight_decay * param
    else:
        grad = grad + weight_decay * param
    exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * grad
    exp_avg_sq = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad**2

    direction = exp_avg / (1 - beta1**step)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / (1 - beta2**step)
    if rho > threshold:
        rectifier = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        direction = rectifier * direction * np.sqrt(1 - beta2**step) / (np.sqrt(exp_avg_sq) + eps)
    return param - lr * direction, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
