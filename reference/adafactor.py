"""Adafactor: a matrix's second moment kept as its row and column means."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import Array, Pair, Shape, State
from .hyper import DECOUPLED_DECAY, LR, Hyper

NAME = "Adafactor"
HYPERPARAMETERS = (
    Hyper(
        "lr",
        None,
        LR.interval,
        optional=True,
        doc="learning rate; None follows the relative schedule, and leaves nothing for a scheduler to change",
        trial=LR.trial,
    ),
    Hyper("beta2_decay", -0.8, "(-inf, 0]", doc="power of t at which the second moment's memory grows"),
    Hyper("eps", (1e-30, 1e-3), kind="floats", doc="added to the squared gradient; least RMS of the parameter"),
    Hyper("clip_threshold", 1.0, "(0, inf)", doc="largest RMS of the update"),
    DECOUPLED_DECAY.with_default(0.0),
)


def init_state(shape: Shape, **_: Any) -> State:
    """Zeros: `row_var` (rows,) and `col_var` (cols,) for a matrix, `variance` of the parameter's shape otherwise."""
    if len(shape) == 2:
        return {"row_var": np.zeros(shape[0]), "col_var": np.zeros(shape[1])}
    return {"variance": np.zeros(shape)}


def update(
    param: Array,
    grad: Array,
    state: State,
    step: int,
    *,
    lr: float | None,
    beta2_decay: float,
    eps: Pair,
    clip_threshold: float,
    weight_decay: float,
    lr_scale: float = 1.0,
) -> tuple[Array, State]:
    """One step of Adafactor.

        β2 = 1 − t^beta2_decay
        matrix:     R ← β2 R + (1 − β2)·mean_j(g² + eps1),  C ← β2 C + (1 − β2)·mean_i(g² + eps1),  V = R Cᵀ/mean(R)
        otherwise:  V ← β2 V + (1 − β2)(g² + eps1)
        u = g/√V,  u ← u / max(1, RMS(u)/clip_threshold)
        α = lr,  or  min(1e-2, 1/√t) · max(eps2, RMS(θ))  without one
        θ ← θ − α(u + λθ)

    Args:
        param, grad: float64, any shape.
        state: see `init_state`.
        step: t, from 1.
        lr_scale: multiplies α where lr is None; a given lr comes scaled already.

    State slots (zeros):
        row_var: R, (rows,); 2-D only.
        col_var: C, (cols,); 2-D only.
        variance: V, the parameter's shape; not 2-D.

    Source: Shazeer & Stern 2018 (arXiv 1804.04235), algorithms 4 and 5, without momentum. Means stand for the paper's
    sums, which leaves V the same; the decoupled decay is AdamW's.
    """
    if param.size == 0:  # the means of nothing are undefined
        return param, state
    eps1, eps2 = eps
    beta2 = 1 - step**beta2_decay
    square = grad**2 + eps1
    if param.ndim == 2:
        row_var = beta2 * state["row_var"] + (1 - beta2) * square.mean(axis=1)
        col_var = beta2 * state["col_var"] + (1 - beta2) * square.mean(axis=0)
        variance = np.outer(row_var, col_var) / row_var.mean()
        new_state = {"row_var": row_var, "col_var": col_var}
    else:
        variance = beta2 * state["variance"] + (1 - beta2) * square
        new_state = {"variance": variance}

    direction = grad / np.sqrt(variance)
    direction = direction / np.maximum(1, rms(direction) / clip_threshold)
    alpha = lr if lr is not None else lr_scale * np.minimum(1e-2, 1 / np.sqrt(step)) * np.maximum(eps2, rms(param))
    return param - alpha * (direction + weight_decay * param), new_state


def rms(x: Array) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(x**2)))
