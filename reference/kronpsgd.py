"""KronPSGD: momentum whitened by a Kronecker-factored preconditioner that is itself learned, without inverses."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Shape, State
from .hyper import DECOUPLED_DECAY, LR, Hyper
from .matrices import MATRIX, NDIM_POLICY, matrix_shape

NAME = "KronPSGD"
HYPERPARAMETERS = (
    LR,
    Hyper("momentum", 0.9, "[0, 1)", doc="decay rate of the averaged gradient"),
    DECOUPLED_DECAY.with_default(0.0),
    Hyper("precond_lr", 0.1, doc="learning rate of the factors"),
    Hyper("precond_beta", 0.9, "[0, 1)", doc="decay rate of the factors' Lipschitz bounds"),
    Hyper("clip_update_rms", 1.1, "(0, inf)", doc="largest RMS of the update"),
    Hyper("max_precond_dim", 8192, "[0, inf)", "int", doc="longest side of a matrix that gets a dense factor"),
    Hyper("max_precond_skew", 1.0, doc="largest share of a matrix's elements that a dense factor may have"),
    NDIM_POLICY,
    MATRIX,
)
FULL_PRECISION_SLOTS = ("left_lipschitz", "right_lipschitz", "lipschitz")  # in float32 at least
BALANCE_PERIOD = 100  # updates of the factors
LAST_CERTAIN, DECAY, LEAST = 500, 0.001, 0.03  # of the updates' schedule: see `probability`


def init_state(
    shape: Shape,
    *,
    ndim_policy: str = "fallback",
    matrix: bool = True,
    max_precond_dim: int = 8192,
    max_precond_skew: float = 1.0,
    **_: Any,
) -> State:
    """`exp_avg` and the factors with their Lipschitz bounds: zeros."""
    state = {"exp_avg": np.zeros(shape)}
    matrices = matrix_shape(shape, ndim_policy=ndim_policy, matrix=matrix)
    if matrices is None:
        return {**state, "factor": np.zeros(shape), "lipschitz": np.zeros(())}
    *batch, rows, columns = matrices
    for side, size in (("left", rows), ("right", columns)):
        diagonal = size > max_precond_dim or size**2 > max_precond_skew * rows * columns
        state[f"{side}_factor"] = np.zeros((*batch, size) if diagonal else (*batch, size, size))
        state[f"{side}_lipschitz"] = np.zeros(batch)
    return state


def update(
    param: Array,
    grad: Array,
    state: State,
    step: int,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    precond_lr: float,
    precond_beta: float,
    clip_update_rms: float,
    max_precond_dim: int,
    max_precond_skew: float,
    ndim_policy: str,
    matrix: bool,
) -> tuple[Array, State]:
    """One step of KronPSGD.

        M ← βM + (1 − β)g,  M̂ = M/(1 − βᵗ)
        P = Q_Lᵀ Q_L M̂ Q_Rᵀ Q_R
        with probability schedule clamp(e^(−0.001(t − 500)), 0.03, 1), per side of length d, numel = mn:
            T = PPᵀ or PᵀP,  c = numel/d,  ℓ = bound(T) + c
            lipschitz ← max(precond_beta · lipschitz + (1 − precond_beta)ℓ, ℓ)
            Q ← Q − precond_lr/lipschitz · (T − cI)Q,  then procrustes(Q)
        P with the new factors,  P ← P / max(1, RMS(P)/clip_update_rms)
        θ ← θ − lr(P + λθ)

    A factor is a diagonal vector where d > max_precond_dim or d² > max_precond_skew · numel; T is then the diagonal.
    The schedule leaves nothing to chance: steps 1 to t make as many updates as the whole part of their probabilities'
    sum (`factor_updates`). Every 100 updates both factors are scaled to equal max|·|. What is no matrix has one
    diagonal factor. A gradient of zeros leaves the factors alone; at any other the factors start from k·I if no update
    has set their lipschitz yet, with k⁴ = mean(M̂⁴)^(−¼), or k² where there is one factor.

    Args:
        param, grad: float64, any shape.
        state: see `init_state`.
        step: t, from 1.

    State slots (zeros; m × n matrices, with any batch dimensions in front):
        exp_avg: M, the parameter's shape.
        left_factor, right_factor: Q_L (m, m) or (m,) and Q_R (n, n) or (n,); of matrices.
        left_lipschitz, right_lipschitz: 0-d, a bound on the curvature that each factor's update meets; 0 before it.
        factor, lipschitz: the same of what is no matrix, the parameter's shape and 0-d.

    Source: Li 2018 (arXiv 1512.04202) and Li 2024 (arXiv 2402.11858), the form whose group step Q^½ E Q^(3/2) needs no
    inverse. Deviations: a sum instead of random draws for the updates, a deterministic `bound`, and no damping
    noise on the gradient.
    """
    if param.size == 0:
        return param, state
    updates = factor_updates(step)
    due = updates > factor_updates(step - 1)
    exp_avg = momentum * state["exp_avg"] + (1 - momentum) * grad
    new_state = {"exp_avg": exp_avg}
    shape = matrix_shape(param.shape, ndim_policy=ndim_policy, matrix=matrix)
    sides = ("left_", "right_") if shape else ("",)
    matrices = shape or (param.size, 1)  # one factor sees a column
    moment = (exp_avg / (1 - momentum**step)).reshape(matrices)
    present = np.any(grad.reshape(matrices) != 0, axis=(-2, -1))
    factors = [state[f"{side}factor"] if shape else state["factor"].reshape(-1) for side in sides]
    bounds = [state[f"{side}lipschitz"] for side in sides]

    fresh = present & (bounds[0] == 0)
    factors = [where(fresh, initial(factor, moment, len(sides)), factor) for factor in factors]
    if due:
        whitened = precondition(moment, factors)
        faces = (whitened, whitened.swapaxes(-1, -2))  # each factor's side as the rows
        stepped = [
            fitted(factor, bound_so_far, face, precond_lr, precond_beta)
            for factor, bound_so_far, face in zip(factors, bounds, faces, strict=False)
        ]
        updated = [factor for factor, _ in stepped]
        if shape and updates % BALANCE_PERIOD == 0:
            updated = balanced(updated, batch=len(shape) - 2)
        factors = [where(present, new, old) for new, old in zip(updated, factors, strict=True)]
        bounds = [where(present, new, old) for (_, new), old in zip(stepped, bounds, strict=True)]

    direction = precondition(moment, factors)
    rms = np.sqrt(np.mean(direction**2, axis=(-2, -1), keepdims=True))
    direction = (direction / np.maximum(1, rms / clip_update_rms)).reshape(param.shape)
    for side, factor, lipschitz in zip(sides, factors, bounds, strict=True):
        new_state[f"{side}factor"] = factor if shape else factor.reshape(param.shape)
        new_state[f"{side}lipschitz"] = lipschitz
    return param - lr * (direction + weight_decay * param), new_state


def probability(step: int) -> float:
    """The probability of an update in step t, clamp(e^(−0.001(t − 500)), 0.03, 1)."""
    return min(max(math.exp(-DECAY * (step - LAST_CERTAIN)), LEAST), 1.0)


@functools.cache
def _sums() -> list[float]:
    """The sum of the probabilities up to each step, from step 0 to the first of the least probability."""
    sums, step = [0.0], 0
    while step == 0 or probability(step) > LEAST:
        step += 1
        sums.append(sums[-1] + probability(step))
    return sums


def expected_updates(step: int) -> float:
    """The sum of the probabilities in steps 1 to t."""
    sums = _sums()
    return sums[step] if step < len(sums) else sums[-1] + LEAST * (step - len(sums) + 1)


def factor_updates(step: int) -> int:
    """The updates of the factors in steps 1 to t."""
    return math.floor(expected_updates(step))


def retired_slots(step: int) -> dict[str, float]:
    """The counters that a state used to hold after step t; `factor_updates` says the same."""
    expected = expected_updates(step)
    return {"update_credit": expected - math.floor(expected), "update_count": float(math.floor(expected))}


def per_matrix(values: NDArray[Any], like: Array) -> NDArray[Any]:
    """One value per matrix of a batch, with dimensions of one added so that it broadcasts over `like`."""
    return np.reshape(values, np.shape(values) + (1,) * (like.ndim - np.ndim(values)))


def where(condition: NDArray[np.bool_], new: Array, old: Array) -> Array:
    """Per matrix of a batch, the new value or the old one."""
    return np.where(per_matrix(condition, new), new, old)


def initial(factor: Array, moment: Array, count: int) -> Array:
    """One of `count` factors k·I, k^(2·count) = mean(M̂⁴)^(−¼), in the factor's layout."""
    largest = np.abs(moment).max(axis=(-2, -1), keepdims=True)
    scale = np.where(largest > 0, largest, 1.0)  # apart, lest the fourth power vanish
    size = np.mean((moment / scale) ** 4, axis=(-2, -1), keepdims=True) ** 0.25 * scale
    k = np.where(largest > 0, size, 1.0) ** (-0.5 / count)
    dense = factor.ndim == moment.ndim
    return k * np.eye(factor.shape[-1]) if dense else np.broadcast_to(k[..., 0], factor.shape)


def precondition(moment: Array, factors: list[Array]) -> Array:
    """Q_Lᵀ Q_L M̂ Q_Rᵀ Q_R, or with the left factor alone."""
    moment = _squared_times(factors[0], moment)
    return _squared_times(factors[1], moment.swapaxes(-1, -2)).swapaxes(-1, -2) if len(factors) > 1 else moment


def _squared_times(factor: Array, x: Array) -> Array:
    """QᵀQx of a dense or a diagonal factor."""
    return factor.swapaxes(-1, -2) @ (factor @ x) if factor.ndim == x.ndim else factor[..., np.newaxis] ** 2 * x


def fitted(
    factor: Array, lipschitz: Array, whitened: Array, precond_lr: float, precond_beta: float
) -> tuple[Array, Array]:
    """A factor and its Lipschitz bound after one update from P, whose rows are the factor's side."""
    target = whitened.shape[-1]
    dense = factor.ndim == whitened.ndim
    covariance = whitened @ whitened.swapaxes(-1, -2) if dense else np.sum(whitened**2, axis=-1)
    curvature = (bound(covariance) if dense else covariance.max(axis=-1)) + target
    lipschitz = np.maximum(precond_beta * lipschitz + (1 - precond_beta) * curvature, curvature)
    product = covariance @ factor if dense else covariance * factor
    factor = factor - precond_lr / per_matrix(lipschitz, factor) * (product - target * factor)
    return procrustes(factor) if dense else factor, lipschitz


def bound(a: Array) -> Array:
    """A lower bound, mostly tight, of the spectral norm of symmetric or antisymmetric matrices, by power iteration.

    s = max|A|,  x = the row of A/s of largest norm
    twice:  x ← xA/s,  x ← x/‖x‖,  x ← xA/s
    ‖x‖s
    """
    largest = np.abs(a).max(axis=(-2, -1), keepdims=True)
    a = a / np.where(largest == 0, 1.0, largest)
    row = np.argmax(np.sum(a**2, axis=-1), axis=-1)[..., np.newaxis, np.newaxis]
    x = np.take_along_axis(a, row, axis=-2)
    for _ in range(2):
        x = x @ a
        norm = np.linalg.norm(x, axis=-1, keepdims=True)
        x = x / np.where(norm == 0, 1.0, norm) @ a
    result: Array = (np.linalg.norm(x, axis=-1, keepdims=True) * largest)[..., 0, 0]
    return result


def procrustes(q: Array) -> Array:
    """Q turned one step towards the symmetric matrix with the same QᵀQ.

    S = Qᵀ − Q,  S ← S/bound(S)
    a = min(⅛, −tr(SQ)/tr(SSQ))  if tr(SSQ) < 0,  ⅛  otherwise
    Q ← Q + a(SQ + ½a·SSQ)
    """
    skew = q.swapaxes(-1, -2) - q
    size = per_matrix(bound(skew), skew)
    skew = skew / np.where(size == 0, 1.0, size)
    once = skew @ q
    twice = skew @ once
    slope, curve = (per_matrix(np.trace(x, axis1=-2, axis2=-1), x) for x in (once, twice))
    step = np.where(curve < 0, np.minimum(0.125, -slope / np.where(curve < 0, curve, 1.0)), 0.125)
    return q + step * (once + 0.5 * step * twice)


def balanced(factors: list[Array], batch: int) -> list[Array]:
    """Both factors of each matrix scaled to equal max|·|, their product kept; `batch` counts the batch dimensions."""
    left, right = (np.abs(factor).max(axis=tuple(range(batch, factor.ndim))) for factor in factors)
    empty = (left == 0) | (right == 0)
    ratio = np.sqrt(np.where(empty, 1.0, right) / np.where(empty, 1.0, left))
    return [factors[0] * per_matrix(ratio, factors[0]), factors[1] / per_matrix(ratio, factors[1])]
