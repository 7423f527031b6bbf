"""SOAP on batches of matrices: covariances, bases, and the rotations around Adam."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..kernels.rules.soap import ROTATED
from .orthogonal import eigenbasis, orthogonal_iteration
from .products import matmul, symmetric_product
from .step import MatrixStep, Selection

State = Mapping[str, torch.Tensor]
SIDES = ("left", "right")
MOMENTS = ("exp_avg", "exp_avg_sq")
MOST_ELEMENTS = 2**28  # that are prepared at a time
ROUNDING = 8  # epsilons, see `drop_rounding_`


def direction(grad: torch.Tensor, state: State, step: MatrixStep) -> torch.Tensor:
    """U of θ ← θ − lr(U + λθ), with the equations of `rlx_gpu.reference.soap.update`.

    Beside state and gradient this takes the memory of two gradients and, when bases change, what `orthonormalize` says.

    Args:
        grad: float32, or float64 on the CPU, [B, m, n], of any strides; overwritten.
        state: batches of the slots; exp_avg and exp_avg_sq [B, m, n] in the gradient's memory order, covariances and
            bases [B, d, d], or [B, 0, 0] on a side that keeps the identity.
        step: hyperparameters, t and `phase` of each matrix.

    Returns:
        [B, m, n], in the gradient's memory.
    """
    hyper = step.hyper
    beta = hyper["betas"][1] if hyper["shampoo_beta"] is None else hyper["shampoo_beta"]
    for side, matrices in zip(SIDES, (grad, grad.mT), strict=True):
        cov = state[f"{side}_cov"]
        if cov.numel():
            symmetric_product(matrices, out=cov, alpha=1.0 - beta, beta=beta, c=cov)
    period = hyper["precondition_frequency"]
    changes = [due(t, phase, period) for t, phase in zip(step.steps, step.counters["phase"], strict=True)]
    for change, selection in step.groups(changes):
        if change == "first":
            start_bases(state, selection, grad[selection])
        elif change == "next":
            change_bases(state, selection)
    left, right = state["left_basis"], state["right_basis"]
    projected = rotated(grad, left, right, torch.empty_like(state["exp_avg"], dtype=grad.dtype))
    if left.numel() or right.numel():
        drop_rounding_(projected)
    assert step.run is not None
    step.run(ROTATED, projected, [state[slot] for slot in MOMENTS])
    return rotated(projected, left.mT, right.mT, grad)


def due(step: int, phase: float, period: int) -> str:
    """What happens to a matrix's bases at this step: "first", "next" or "none"."""
    if step == 1:
        return "first"
    return "next" if (step - 1 + int(phase)) % period == 0 else "none"


def start_bases(state: State, selection: Selection, grad: torch.Tensor) -> None:
    """The eigenvectors of GGᵀ and GᵀG, found once and in float64.

    They are the singular vectors of the gradient, which is diagonal between them. Found in float32, they would leave
    beside the diagonal what rounding GGᵀ has taken from the smaller singular values, and Adam makes full steps of it.
    """
    for side, matrices in zip(SIDES, (grad, grad.mT), strict=True):
        if state[f"{side}_cov"].numel():
            wide, basis = matrices.double(), state[f"{side}_basis"]
            basis[selection] = eigenbasis(wide @ wide.mT, basis.dtype)


def change_bases(state: State, selection: Selection) -> None:
    """One orthogonal iteration a side; the moments are carried over to the new bases.

    Beside state this takes the memory of each side's square, of what `orthogonal_iteration` takes for one side, and of
    two moments.
    """
    turns = []
    for side in SIDES:
        cov, basis = state[f"{side}_cov"], state[f"{side}_basis"]
        old = basis[selection]
        if not cov.numel():
            turns.append(old)
            continue
        new = orthogonal_iteration(cov[selection], old)
        turns.append(matmul(old.mT, new))
        basis[selection] = new
    for slot in MOMENTS:
        moment = state[slot][selection]
        left, right = turns
        dtype = left.dtype
        result = rotated(moment.to(dtype), left, right, torch.empty_like(moment, dtype=dtype))
        state[slot][selection] = result.to(moment.dtype)
        turns = [turn.square() for turn in turns]


def rotated(x: torch.Tensor, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """LᵀXR, into `out`; an empty L or R stands for the identity."""
    if right.numel():
        return matmul(matmul(left.mT, x) if left.numel() else x, right, out=out)
    return matmul(left.mT, x, out=out) if left.numel() else out.copy_(x)


def drop_rounding_(x: torch.Tensor) -> torch.Tensor:
    """Sets to zero what is smaller than 8 epsilons, 2⁻²⁰ in float32, of the matrix's largest entry.

    Rotating a gradient into its own eigenvectors leaves float32's rounding where exact arithmetic leaves zeros, in
    every direction in which it has no component. Adam would make full steps of it, at t = 1 in all the null directions
    of a tall matrix. In float64 it is about 1e-16 of the largest entry, which eps hides.
    """
    largest = torch.linalg.vector_norm(x, float("inf"), dim=(-2, -1), keepdim=True)
    return x.mul_(x.abs() >= ROUNDING * torch.finfo(x.dtype).eps * largest)
