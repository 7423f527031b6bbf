"""Sophia: momentum over an estimate of the Hessian's diagonal, clipped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .arrays import Array, Pair, Shape, State
from .hyper import BETAS, DECOUPLED_DECAY, LR, Hyper

NAME = "Sophia"
HYPERPARAMETERS = (
    LR.with_default(1e-4),
    replace(BETAS, default=(0.965, 0.99), doc="decay rates of the momentum and of the Hessian"),
    Hyper("gamma", 0.01, doc="scale of the Hessian: larger means smaller, less clipped steps", trial=1.0),
    Hyper(
        "rho", 0.04, "(0, inf)", doc="largest step of one element, in units of lr", trial=0.5
    ),  # clips some elements, not all
    Hyper("eps", 1e-12, doc="smallest curvature to divide by"),
    DECOUPLED_DECAY.with_default(0.1),
)


def init_state(shape: Shape, **_: Any) -> State:
    """`exp_avg` and `hessian`: zeros."""
    return {"exp_avg": np.zeros(shape), "hessian": np.zeros(shape)}


def update(
    param: Array,
    grad: Array,
    state: State,
    step: int,
    *,
    lr: float,
    betas: Pair,
    gamma: float,
    rho: float,
    eps: float,
    weight_decay: float,
) -> tuple[Array, State]:
    """One step of Sophia; the Hessian changes in `update_hessian` only.

        m ← β1 m + (1 − β1)g
        u = clip(m / max(gamma·h, eps), −rho, rho)
        θ ← θ − lr(u + λθ)

    Args:
        param, grad: float64, any shape.
        state: see `init_state`.
        step: not used.

    State slots (the parameter's shape, zeros):
        exp_avg: m.
        hessian: h.

    Source: Liu et al. 2023 (arXiv 2305.14342), algorithm 3. The bound rho is the paper's 1 made a hyperparameter, 0.04
    as in the paper's code.
    """
    beta1, _ = betas
    exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * grad
    direction = np.clip(exp_avg / np.maximum(gamma * state["hessian"], eps), -rho, rho)
    return param - lr * (direction + weight_decay * param), {"exp_avg": exp_avg, "hessian": state["hessian"]}


def update_hessian(state: State, estimate: Array, *, betas: Pair) -> State:
    """The state after seeing an estimate of the Hessian's diagonal: h ← β2 h + (1 − β2)·estimate."""
    _, beta2 = betas
    return {**state, "hessian": beta2 * state["hessian"] + (1 - beta2) * estimate}
