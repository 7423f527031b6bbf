"""Cholesky factors of batches of symmetric matrices, and their inverses, made of batched products.

The solvers beneath torch work through large matrices one after the other; products of all of them fill a GPU.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from .products import matmul, symmetric_product

BASE = 256  # side of the diagonal blocks that are left to the solvers, those of all matrices at once
LOWER_ROWS = 768  # of a product with a triangle: in thinner slices, what the zeros save is lost again


def inverse_factor(k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L⁻¹ of K = LLᵀ, by halves; nothing waits for a GPU.

        L₂₁ = K₂₁L₁₁⁻ᵀ,  K₂₂ − L₂₁L₂₁ᵀ = L₂₂L₂₂ᵀ,  (L⁻¹)₂₁ = −L₂₂⁻¹L₂₁L₁₁⁻¹

    Beside the result this takes up to half of K's memory, and what `matmul` takes for one of its quarters.

    Args:
        k: float32 [B, d, d], symmetric, with contiguous rows or columns; overwritten.

    Returns:
        L⁻¹, float32 [B, d, d], zero above the diagonal; and, bool [B], which matrices turned out not to be positive
        definite: nothing is promised of their L⁻¹. A NaN stays in its own matrix, whether that counts as failed or not.
    """
    inverse = torch.zeros_like(k, memory_format=torch.contiguous_format)
    failed = torch.zeros(len(k), dtype=torch.bool, device=k.device)
    _invert(k, inverse, failed)
    return inverse, failed


def whiten(k: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L⁻¹X for K = LLᵀ, as X + (L⁻¹ − I)X, which rounds the less the nearer K is to I; nothing waits for a GPU.

    Beside X, which must not overlap K, and K this takes the memory of K once, and what `matmul` takes for slices. K is
    overwritten, perhaps with the result; which matrices failed is as in `inverse_factor`.
    """
    if k.shape[-1] <= BASE:
        factor, info = torch.linalg.cholesky_ex(k)
        return torch.linalg.solve_triangular(factor, rows, upper=False), info != 0
    inverse, failed = inverse_factor(k)
    inverse.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    return _lower_product(inverse, rows, k).add_(rows), failed


def _invert(k: torch.Tensor, inverse: torch.Tensor, failed: torch.Tensor) -> None:
    """Writes L⁻¹ into the lower triangle of `inverse`, and marks in `failed` which K are not positive definite."""
    size = k.shape[-1]
    if size <= BASE:
        factor, info = torch.linalg.cholesky_ex(k)
        eye = torch.eye(size, dtype=k.dtype, device=k.device).expand_as(k)
        inverse.copy_(torch.linalg.solve_triangular(factor, eye, upper=False))
        failed |= info != 0
        return
    half = (size + BASE) // (2 * BASE) * BASE
    (k11, k21, k22), (inverse11, inverse21, inverse22) = _quarters(k, half), _quarters(inverse, half)
    _invert(k11, inverse11, failed)
    l21 = torch.empty_like(k21, memory_format=torch.contiguous_format)
    _lower_product(inverse11, k21.mT, l21.mT)
    symmetric_product(l21, out=k22, alpha=-1.0, beta=1.0, c=k22)
    _invert(k22, inverse22, failed)
    _lower_product(inverse22, matmul(l21, inverse11), inverse21).neg_()


def _quarters(x: torch.Tensor, half: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """X₁₁, X₂₁ and X₂₂, where the first part ends at `half`."""
    return x[:, :half, :half], x[:, half:, :half], x[:, half:, half:]


def _lower_product(lower: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The product of lower triangular matrices with others, into `out`; by slices, without most of the zeros."""
    size = lower.shape[-1]
    slices = max(1, size // LOWER_ROWS)
    ends = [size * part // slices // 4 * 4 for part in range(slices)] + [size]  # at 16 bytes: vector loads
    for start, end in pairwise(ends):
        matmul(lower[:, start:end, :end], x[:, :end], out=out[:, start:end])
    return out
