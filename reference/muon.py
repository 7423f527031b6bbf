"""Muon: momentum, orthogonalised, for matrices; AdamW or momentum for everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from . import adamw
from .arrays import Array, Pair, Shape, State
from .hyper import BETAS, DECOUPLED_DECAY, LR, Hyper
from .matrices import MATRIX, NDIM_POLICY, matrix_shape
from .newton_schulz import EPS, POLYNOMIALS, STEPS, Coefficients, newton_schulz

NAME = "Muon"
ADJUSTMENTS: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: max(1.0, rows / columns) ** 0.5,
    "match_rms_adamw": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
    "unit_rms": lambda rows, columns: max(rows, columns) ** 0.5,
    "spectral": lambda rows, columns: (rows / columns) ** 0.5,
}
HYPERPARAMETERS = (
    LR,
    DECOUPLED_DECAY.with_default(0.0),
    Hyper("momentum", 0.95, "[0, 1)", doc="decay rate of the momentum buffer"),
    Hyper("nesterov", True, kind="bool", doc="look one momentum step ahead"),
    replace(POLYNOMIALS, name="ns_coefficients"),
    EPS,
    replace(STEPS, name="ns_steps"),
    Hyper(
        "adjust_lr_fn",
        "original",
        kind="choice",
        choices=tuple(ADJUSTMENTS),
        doc="how the update's size depends on the matrix's shape",
    ),
    NDIM_POLICY,
    Hyper(
        "split_sizes",
        None,
        "[1, inf)",
        "sizes",
        optional=True,
        doc="rows of the blocks that a matrix of as many rows is orthogonalised in, as the parts of a fused projection",
    ),
    Hyper(
        "ns_dtype",
        "bfloat16",
        kind="choice",
        choices=("bfloat16", "float16", "float32"),
        doc="format of the iteration on a GPU; the reference computes in float64 whatever it says",
        trial="float32",  # since the reference does not round between iterations
    ),
    MATRIX,
    Hyper("fallback", "adamw", kind="choice", choices=("adamw", "sgd"), doc="the rule of all other parameters"),
    Hyper("fallback_lr_scale", 1.0, doc="the fallback's learning rate, as a multiple of lr"),
    replace(BETAS, doc="decay rates of the fallback's first and second moment"),
    Hyper("fallback_eps", 1e-8, doc="added to the fallback's denominator"),
)


def init_state(
    shape: Shape, *, ndim_policy: str = "fallback", matrix: bool = True, fallback: str = "adamw", **_: Any
) -> State:
    """`momentum_buffer` zeros for a matrix and under "sgd"; `exp_avg` and `exp_avg_sq` zeros under "adamw"."""
    if fallback == "sgd" or matrix_shape(shape, ndim_policy=ndim_policy, matrix=matrix):
        return {"momentum_buffer": np.zeros(shape)}
    return adamw.init_state(shape)


def update(
    param: Array,
    grad: Array,
    state: State,
    step: int,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    ns_coefficients: Coefficients,
    ns_steps: int,
    adjust_lr_fn: str,
    eps: float,
    ndim_policy: str,
    split_sizes: tuple[int, ...] | None,
    ns_dtype: str,
    matrix: bool,
    fallback: str,
    fallback_lr_scale: float,
    betas: Pair,
    fallback_eps: float,
) -> tuple[Array, State]:
    """One step of Muon.

        M ← μM + g
        U = g + μM  if nesterov,  M  otherwise
        X = newton_schulz(U),  block of rows by block of rows where the rows are split_sizes' sum
        s = √max(1, m/n)  "original",  0.2√max(m, n)  "match_rms_adamw",  √max(m, n)  "unit_rms",  √(m/n)  "spectral"
        θ ← θ − lr(sX + λθ)     with the s of each block's m rows and n columns

    What is no matrix takes AdamW's step, or θ ← θ − lr(U + λθ) under "sgd", with lr · fallback_lr_scale for lr.

    Args:
        param, grad: float64, any shape.
        state: see `init_state`.
        step: t, from 1.

    State slots (the parameter's shape, zeros):
        momentum_buffer: M; of a matrix, and under "sgd".
        exp_avg, exp_avg_sq: AdamW's, of what is no matrix.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", see `newton_schulz`. The
    decoupled decay is AdamW's, with the lr that s does not scale; "match_rms_adamw" is from Liu et al. 2025
    (arXiv 2502.16982).
    """
    if param.size == 0:  # nor has an empty matrix a norm
        return param, state
    shape = matrix_shape(param.shape, ndim_policy=ndim_policy, matrix=matrix)
    if shape is None:
        lr = lr * fallback_lr_scale
        if fallback == "adamw":
            return adamw.update(
                param, grad, state, step, lr=lr, betas=betas, eps=fallback_eps, weight_decay=weight_decay, amsgrad=False
            )

    buffer = momentum * state["momentum_buffer"] + grad
    direction = grad + momentum * buffer if nesterov else buffer
    if shape is not None:
        matrices = direction.reshape(shape)
        sizes = split_sizes if split_sizes and sum(split_sizes) == shape[-2] else shape[-2:-1]
        blocks = np.split(matrices, np.cumsum(sizes)[:-1], axis=-2)
        scale = ADJUSTMENTS[adjust_lr_fn]
        steps = [scale(*block.shape[-2:]) * newton_schulz(block, ns_steps, ns_coefficients, eps) for block in blocks]
        direction = np.concatenate(steps, axis=-2).reshape(param.shape)
    return param - lr * (direction + weight_decay * param), {"momentum_buffer": buffer}
