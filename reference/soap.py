"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import adamw
from .arrays import Array, Pair, Shape, State
from .hyper import BETAS, DECOUPLED_DECAY, EPS, LR, Hyper
from .matrices import MATRIX, NDIM_POLICY, matrix_shape

NAME = "SOAP"
HYPERPARAMETERS = (
    LR.with_default(3e-3),
    BETAS.with_default((0.95, 0.95)),
    Hyper(
        "shampoo_beta", None, "[0, 1)", optional=True, doc="decay rate of the covariances; None is betas[1]", switch=0.9
    ),
    EPS,
    DECOUPLED_DECAY,
    Hyper("precondition_frequency", 10, "[1, inf)", "int", doc="steps from one change of basis to the next", trial=2),
    Hyper("max_precond_dim", 10000, "[0, inf)", "int", doc="longest side of a matrix that gets a basis of its own"),
    NDIM_POLICY,
    MATRIX,
    Hyper(
        "stagger",
        True,
        kind="bool",
        doc="spread the matrices' changes of basis over the period on a GPU; False: all in the same step, as here",
        trial=True,  # which step changes a basis is no other rule
    ),
)
SCALAR_SLOTS = ("phase",)
FULL_PRECISION_SLOTS = ("left_cov", "right_cov", "left_basis", "right_basis")  # in float32 at least


def init_state(
    shape: Shape, *, ndim_policy: str = "fallback", matrix: bool = True, max_precond_dim: int = 10000, **_: Any
) -> State:
    """`exp_avg` and `exp_avg_sq`, and for a matrix a covariance and a basis of each side, and `phase`: zeros."""
    state = adamw.init_state(shape)
    matrices = matrix_shape(shape, ndim_policy=ndim_policy, matrix=matrix)
    if matrices is None:
        return state
    for side, size in zip(("left", "right"), matrices[-2:], strict=True):
        kept = size if size <= max_precond_dim else 0  # a side that keeps the identity has no numbers to store
        for slot in (f"{side}_cov", f"{side}_basis"):
            state[slot] = np.zeros((*matrices[:-2], kept, kept))
    return {**state, "phase": np.zeros(())}


def update(
    param: Array,
    grad: Array,
    state: State,
    step: int,
    *,
    lr: float,
    betas: Pair,
    shampoo_beta: float | None,
    eps: float,
    weight_decay: float,
    precondition_frequency: int,
    max_precond_dim: int,
    ndim_policy: str,
    matrix: bool,
    stagger: bool,
) -> tuple[Array, State]:
    """One step of SOAP.

        L ← β_s L + (1 − β_s)GGᵀ,  R ← β_s R + (1 − β_s)GᵀG
        t = 1:  Q_L, Q_R = eigenvectors of L and R
        t > 1 and (t − 1 + phase) mod precondition_frequency = 0, on each side:
            Q⁺ = orth(LQ),  T = QᵀQ⁺,  m ← T_Lᵀ m T_R,  v ← (T_L⊙T_L)ᵀ v (T_R⊙T_R)
        G' = Q_Lᵀ G Q_R
        m ← β1 m + (1 − β1)G',  v ← β2 v + (1 − β2)G'²
        U' = m/(1 − β1ᵗ) / (√(v/(1 − β2ᵗ)) + eps)
        θ ← θ − lr(Q_L U' Q_Rᵀ + λθ)

    A side longer than max_precond_dim keeps Q = I. What is no matrix takes AdamW's step with the same betas.

    Args:
        param, grad: float64, any shape.
        state: see `init_state`.
        step: t, from 1.

    State slots (zeros; m × n matrices, with any batch dimensions in front):
        exp_avg: m, the parameter's shape, in the rotated basis.
        exp_avg_sq: v, the parameter's shape, in the rotated basis.
        left_cov, right_cov: L (m, m) and R (n, n); (0, 0) on a side that keeps the identity.
        left_basis, right_basis: Q_L (m, m) and Q_R (n, n); likewise. Eigenvectors by descending eigenvalue, the entry
            of largest magnitude positive; those of orth with a positive diagonal in its triangular factor.
        phase: 0-d, steps by which the changes of basis come earlier; set by no reference, but kept.

    Source: Vyas et al. 2024 (arXiv 2409.11321), algorithms 3 and 4. Deviations: the first step updates θ, this step's
    gradient enters L and R before it is rotated, v is carried over to the new basis, and the decay is decoupled.
    """
    if param.size == 0:
        return param, state
    shape = matrix_shape(param.shape, ndim_policy=ndim_policy, matrix=matrix)
    if shape is None:
        return adamw.update(
            param, grad, state, step, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=False
        )

    (beta1, beta2), beta = betas, betas[1] if shampoo_beta is None else shampoo_beta
    gradient, exp_avg, exp_avg_sq = (x.reshape(shape) for x in (grad, state["exp_avg"], state["exp_avg_sq"]))
    left_cov, left_basis = state["left_cov"], state["left_basis"]
    right_cov, right_basis = state["right_cov"], state["right_basis"]
    if left_cov.size:
        left_cov = beta * left_cov + (1 - beta) * gradient @ gradient.swapaxes(-1, -2)
    if right_cov.size:
        right_cov = beta * right_cov + (1 - beta) * gradient.swapaxes(-1, -2) @ gradient

    if step == 1:
        left_basis, right_basis = eigenvectors(left_cov), eigenvectors(right_cov)
    elif (step - 1 + int(state["phase"])) % precondition_frequency == 0:
        left_turn, left_basis = orthogonal_iteration(left_cov, left_basis)
        right_turn, right_basis = orthogonal_iteration(right_cov, right_basis)
        exp_avg = rotated(exp_avg, left_turn, right_turn)
        exp_avg_sq = rotated(exp_avg_sq, left_turn**2, right_turn**2)

    projected = rotated(gradient, left_basis, right_basis)
    exp_avg = beta1 * exp_avg + (1 - beta1) * projected
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * projected**2
    direction = exp_avg / (1 - beta1**step) / (np.sqrt(exp_avg_sq / (1 - beta2**step)) + eps)
    direction = rotated(direction, left_basis.swapaxes(-1, -2), right_basis.swapaxes(-1, -2)).reshape(param.shape)
    return param - lr * (direction + weight_decay * param), {
        "exp_avg": exp_avg.reshape(param.shape),
        "exp_avg_sq": exp_avg_sq.reshape(param.shape),
        "left_cov": left_cov,
        "left_basis": left_basis,
        "right_cov": right_cov,
        "right_basis": right_basis,
        "phase": state["phase"],
    }


def rotated(x: Array, left: Array, right: Array) -> Array:
    """LᵀxR; an empty L or R stands for the identity."""
    x = left.swapaxes(-1, -2) @ x if left.size else x
    return x @ right if right.size else x


def eigenvectors(cov: Array) -> Array:
    """The eigenvectors of symmetric matrices as columns, by descending eigenvalue, largest entry positive."""
    if not cov.size:
        return cov
    finite = np.isfinite(cov).all(axis=(-2, -1), keepdims=True)  # LAPACK need not converge on NaN
    vectors = np.linalg.eigh(np.where(finite, cov, 0))[1][..., ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=-2)[..., np.newaxis, :], axis=-2)
    return np.where(finite, vectors * np.sign(largest), np.nan)


def orthogonal_iteration(cov: Array, basis: Array) -> tuple[Array, Array]:
    """The turn T = QᵀQ⁺ and the new basis Q⁺ = orth(cov·Q)."""
    if not cov.size:
        return cov, basis
    orthogonal, triangular = np.linalg.qr(cov @ basis)
    diagonal = np.diagonal(triangular, axis1=-2, axis2=-1)[..., np.newaxis, :]
    updated = orthogonal * np.where(diagonal < 0, -1.0, 1.0)
    return basis.swapaxes(-1, -2) @ updated, updated
