"""Batched matrix products: symmetric ones at half the work, and float32 ones at float32's accuracy.

Every function here chooses by one table between a Triton kernel and torch; without kernels, torch it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import NamedTuple

import torch

from ..checks import runs_kernels


class Route(NamedTuple):
    """From how many tiles of 128 × 128, over the whole batch, the kernel is faster than cuBLAS, and large tiles are."""

    kernel: int
    large: int


# By operation and format. Below `kernel`, a multiprocessor has too few tiles to hide one's start behind another's end.
ROUTES = {
    ("symmetric_product", torch.bfloat16): Route(kernel=512, large=144),
    ("symmetric_product", torch.float16): Route(kernel=512, large=144),
    ("symmetric_product", torch.float32): Route(kernel=0, large=512),
    ("matmul", torch.float32): Route(kernel=0, large=512),
}


def symmetric_product(
    x: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    c: torch.Tensor | None = None,
) -> torch.Tensor:
    """αXXᵀ + βC of every matrix of a batch, float32 at full accuracy; 16-bit formats are summed in float32.

    The kernel's result is symmetric to the last bit, cuBLAS's up to rounding. For symmetric X, XX is the same product.

    Args:
        x: float32, bfloat16 or float16 [B, m, k], of any strides; fastest with a contiguous m (`x.mT` contiguous).
        out: [B, m, m] of x's dtype with contiguous rows or columns, overlapping nothing but c; None to make one.
        c: symmetric, as `out`, and may be `out`; None for no such term.

    Raises:
        ValueError: a shape, dtype or layout that does not fit, or `out` in the place of x.
    """
    batch, rows, inner = x.shape
    out = x.new_empty((batch, rows, rows)) if out is None else out
    term = out if c is None else c
    for name, tensor in (("out", out), ("c", term)):
        if tensor.shape != (batch, rows, rows) or tensor.dtype != x.dtype:
            raise ValueError(
                f"{name}: {tensor.dtype} {tuple(tensor.shape)}, must be {x.dtype} {(batch, rows, rows)} for x"
            )
    if out.data_ptr() == x.data_ptr() and x.numel():
        raise ValueError("out: is in the place of x, which every tile reads")
    tiles = ceil(rows / 128)
    size = _kernel_tiles("symmetric_product", x, batch * tiles * (tiles + 1) // 2)
    if size is None:
        with full_float32():
            return torch.baddbmm(term, x, x.mT, beta=0.0 if c is None else beta, alpha=alpha, out=out)
    from . import tiled

    tiled.symmetric_product(x, out, alpha, beta, c, large=size == "large")
    return out


def matmul(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """AB of every pair of float32 matrices, at full float32 accuracy.

    Args:
        a, b: float32 [B, m, k] and [B, k, n], of any strides.
        out: float32 [B, m, n] with contiguous rows or columns, overlapping neither; None to make one.

    Raises:
        ValueError: a shape or layout that does not fit, or another dtype.
    """
    batch, rows, inner = a.shape
    cols = b.shape[2]
    out = a.new_empty((batch, rows, cols)) if out is None else out
    if b.shape != (batch, inner, cols) or out.shape != (batch, rows, cols):
        raise ValueError(f"shapes do not fit: {tuple(a.shape)} by {tuple(b.shape)} into {tuple(out.shape)}")
    if {a.dtype, b.dtype, out.dtype} != {torch.float32}:
        raise ValueError(f"dtypes must be torch.float32, got {a.dtype} by {b.dtype} into {out.dtype}")
    size = _kernel_tiles("matmul", a, batch * ceil(rows / 128) * ceil(cols / 128))
    if size is None:
        with full_float32():
            return torch.bmm(a, b, out=out)
    from . import tiled

    tiled.matmul(a, b, out, large=size == "large")
    return out


def householder_(s: torch.Tensor, failed: torch.Tensor) -> torch.Tensor:
    """Replaces each S = QR whose `failed` is not 0 by Q, R's diagonal ≥ 0; which ones is decided on the device.

    Q is orthogonal whatever S's rank. The kernel works through a matrix in one program: a fallback, not a fast path.

    Args:
        s: float32 [B, m, m], contiguous, changed in place.
        failed: int32 [B].

    Raises:
        ValueError: a shape, dtype or layout that does not fit.
    """
    batch, size = s.shape[:2]
    if s.dtype != torch.float32 or s.shape != (batch, size, size) or not s.is_contiguous():
        raise ValueError(f"s: {s.dtype} {tuple(s.shape)}, must be contiguous torch.float32 [B, m, m]")
    if failed.dtype != torch.int32 or failed.shape != (batch,) or not failed.is_contiguous():
        raise ValueError(f"failed: {failed.dtype} {tuple(failed.shape)}, must be contiguous torch.int32 ({batch},)")
    if runs_kernels(s.device):
        from . import tiled

        tiled.householder_(s, failed)
    else:
        chosen = failed != 0
        q, r = torch.linalg.qr(s[chosen])
        s[chosen] = torch.where(r.diagonal(dim1=1, dim2=2)[:, None] < 0, -q, q)
    return s


@contextmanager
def full_float32() -> Iterator[None]:
    """While it lasts, torch multiplies float32 matrices in float32, whatever its TF32 switches say.

    Only the switch that cuBLAS calls read is turned, and turned back; the older ones may not be read meanwhile.
    """
    switches = torch.backends.cuda.matmul
    before = switches.fp32_precision
    if before != "tf32":
        yield
        return
    switches.fp32_precision = "ieee"
    try:
        yield
    finally:
        switches.fp32_precision = before


def _kernel_tiles(operation: str, x: torch.Tensor, tiles: int) -> str | None:
    """Whether the kernel multiplies, in "large" or "small" tiles; None where torch does."""
    if not runs_kernels(x.device) or (operation, x.dtype) not in ROUTES:
        return None
    route = ROUTES[operation, x.dtype]
    if x.device.type == "cuda" and tiles < route.kernel:
        return None
    return "large" if tiles >= route.large else "small"
