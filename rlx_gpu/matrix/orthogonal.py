"""Orthonormal bases of batches of symmetric matrices: eigenvectors once, then orthogonal iterations."""

from __future__ import annotations

import warnings

import torch

from ..engine.devices import on_host
from .cholesky import whiten
from .products import householder_, matmul, symmetric_product

# In multiples of the format's epsilon:
DAMPING = 4  # of ‖L‖: see `orthogonal_iteration`
SHIFT = 8  # of ‖SᵀS‖: more than its rounding, of which no eigenvalue must come out negative
PASSES = 3
# Of an entry of QᵀQ from the identity's. Rounding of a good Q leaves a few epsilon, a failure leaves no digits; between
# the two a basis is better kept than found anew by the slow fallback, since the next iteration straightens it.
MOST_DEVIATION = 64


def eigenbasis(cov: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The eigenvectors of symmetric matrices as columns, by descending eigenvalue, largest entry positive.

    Of float32 or float64 [B, d, d], solved in that format, [B, d, d] in `dtype`, one of these. The solver's columns
    are made orthonormal once more, since in float32 it leaves several times the rounding. If it fails, float64 is
    tried, then the CPU, each with a warning. A matrix that is not finite gets a basis of NaN. This waits for a GPU.
    """
    finite = torch.isfinite(cov).all(dim=-1).all(dim=-1)[:, None, None]
    vectors = orthonormalize(_solve(_unit(torch.where(finite, cov, 0.0)), dtype).flip(-1))
    largest = vectors.gather(-2, vectors.abs().argmax(dim=-2, keepdim=True))
    return torch.where(finite, torch.where(largest < 0.0, -vectors, vectors), torch.nan)


def orthogonal_iteration(cov: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Q⁺ = orth(LQ) with a positive diagonal of the triangular factor; nothing waits for a GPU.

    L of a gradient with few rows or many zeros has eigenvalues far below float32's rounding of LQ; the columns that
    belong to them would be noise, and perhaps dependent. L + δI has the same eigenvectors and δ = 4 ε‖L‖ for its
    smallest eigenvalue, a few times that noise: such columns stay where they were, and eigenvalues that float32 can
    tell from zero hardly notice. The memory is that of `orthonormalize`.

    All are float32, or float64 on the CPU, [B, d, d]; the result is Q where L is zero, NaN where L or Q is not finite.
    """
    return orthonormalize(_damped_product(_unit(cov), basis))


def orthonormalize(s: torch.Tensor) -> torch.Tensor:
    """Q of S = QR, R upper triangular with a positive diagonal; nothing waits for a GPU.

        S scaled to columns of norm 1, which changes R only
        PASSES times: K = SᵀS + shift·‖SᵀS‖I = RᵀR by Cholesky, S ← SR⁻¹; no shift in the last

    The norm is Frobenius's, at most d and near √d where S is nearly orthonormal. Each shifted pass divides the
    condition number by up to 1/√shift over the norm's root: by 100 for d = 500. So the last one meets a condition
    number of ten or less, even where LQ has float32's worst and Q has nothing to do with L, and leaves rounding.
    Matrices too close to singular even for this (K not positive, or columns not orthonormal at the end) are found on
    the device, and a Householder QR is run on those alone. That works through a matrix in one program, hence one pass
    more than gradients need that change slowly.

    Beside S this takes four times its memory, and in large products what `matmul` takes for slices. On the CPU,
    LAPACK's Householder QR is faster than so many products.

    Args:
        s: float32, or float64 on the CPU, [B, d, d], entries of which neither the squares nor their sums overflow or
            vanish; fastest with contiguous columns.

    Returns:
        Q, in the format of S, contiguous.

    Source: Fukaya et al. 2020 (arXiv 1809.11085), shifted Cholesky QR.
    """
    if on_host(s.device):
        q, r = torch.linalg.qr(s)
        diagonal = r.diagonal(dim1=-2, dim2=-1)[:, None]
        return torch.where(diagonal < 0.0, -q, q).contiguous()
    norms = torch.linalg.vector_norm(s, dim=-2, keepdim=True)
    s = s / torch.where(norms == 0.0, 1.0, norms)
    epsilon = torch.finfo(s.dtype).eps
    rows = s.mT  # rows instead of columns: what the products and the triangular solver take without a copy
    failed = torch.zeros(len(s), dtype=torch.bool, device=s.device)
    for remaining in reversed(range(PASSES)):
        product = symmetric_product(rows)
        if remaining:
            shift = SHIFT * epsilon * torch.linalg.vector_norm(product, dim=(-2, -1))
            product.diagonal(dim1=-2, dim2=-1).add_(shift[:, None])
        rows, not_positive = whiten(product, rows)
        failed |= not_positive
    deviation = symmetric_product(rows)
    deviation.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    failed |= ~(torch.linalg.vector_norm(deviation, float("inf"), dim=(-2, -1)) <= MOST_DEVIATION * epsilon)
    q = torch.empty_like(s, memory_format=torch.contiguous_format)
    return householder_(torch.where(failed[:, None, None], s, rows.mT, out=q), failed.to(torch.int32))


def _damped_product(cov: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """(L + δI)Q, with contiguous columns."""
    damping = DAMPING * torch.finfo(cov.dtype).eps * torch.linalg.vector_norm(cov, dim=(-2, -1), keepdim=True)
    return matmul(basis.mT, cov).addcmul_(basis.mT, torch.where(damping == 0.0, 1.0, damping)).mT


def _unit(cov: torch.Tensor) -> torch.Tensor:
    """Each matrix over its largest entry, so that no square overflows or vanishes."""
    peak = torch.linalg.vector_norm(cov, float("inf"), dim=(-2, -1), keepdim=True)
    return cov / torch.where(peak == 0.0, 1.0, peak)


def _solve(cov: torch.Tensor, wanted: torch.dtype) -> torch.Tensor:
    """Eigenvectors by ascending eigenvalue, by the first solver that does not fail."""
    label = f"torch.linalg.eigh of {len(cov)} matrices {cov.shape[-1]} x {cov.shape[-1]} failed"
    wider = torch.float64
    for dtype, device in ((cov.dtype, cov.device), (wider, cov.device), (wider, torch.device("cpu"))):
        try:
            vectors: torch.Tensor = torch.linalg.eigh(cov.to(device, dtype)).eigenvectors
            if torch.isfinite(vectors).all():
                return vectors.to(cov.device, wanted)
            reason = "eigenvectors that are not finite"
        except RuntimeError as error:  # LinAlgError, the solver's own errors, no memory
            reason = str(error)
        message = f"{label} in {dtype} on {device}: {reason}"
        warnings.warn(f"{message}; float64 is tried, at last on the CPU", RuntimeWarning, stacklevel=4)
    raise RuntimeError(message)
