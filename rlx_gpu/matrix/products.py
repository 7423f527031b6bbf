"""Batched matrix products: symmetric ones at half the work, and float32 ones at float32's accuracy.

Triton kernels take part where they are faster than cuBLAS alone; without kernels, torch does everything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from ..engine.devices import on_host

# From where on three products in TF32, of operands split in two, are faster than one in float32.
SPLIT_SIDE = 768  # of each of the three sizes
SPLIT_WORK = 2**32  # multiply-adds of the whole batch
# Whether torch multiplies matrices of 16 bits on this processor as fast as it can.
HALVES = {
    torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
    torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
}
MOST_WORK = 2**34  # multiply-adds of the matrices split at a time, if a single one has no more: bounds the memory


def faster(dtype: torch.dtype, unit: str, rows: int, tiles: int, with_c: bool) -> bool:
    """Whether the kernel beats cuBLAS for such a `tiled.layout` and so many tiles of 128 × 128 in the whole batch.

    Measured on an H200 (Triton 3.6, torch 2.11, 2026-11-22).
    """
    if unit == "none" or rows < 256:
        return False
    if dtype == torch.float32:
        return True  # SGEMM does without tensor cores
    if with_c:
        return rows >= 512  # cuBLAS reads C in a pass of its own
    return rows >= 3072 if unit == "cols" else rows >= 2048 or tiles >= 512


def faster_side(x: torch.Tensor) -> torch.Tensor:
    """A square matrix or its transpose, whichever the kernel reads faster: float32 by rows, 16 bits by columns."""
    return x if x.stride(-1 if x.dtype == torch.float32 else -2) == 1 else x.mT


def symmetric_product(
    x: torch.Tensor,
    y: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    c: torch.Tensor | None = None,
) -> torch.Tensor:
    """αXYᵀ + βC of every matrix of a batch, float32 at full accuracy; 16-bit formats are summed in float32.

    The kernel's result is symmetric to the last bit, cuBLAS's up to rounding. For symmetric X, XX is the same product.
    With another Y, XYᵀ must be symmetric, as where X and Y are polynomials in one symmetric matrix: the kernel computes
    its lower triangle only. On the CPU torch computes all of it, in float64 too.

    Args:
        x: float32, bfloat16 or float16 [B, m, k], of any strides. Fastest with a contiguous m (`x.mT` contiguous) in
            16 bits, and with a contiguous k in float32, which is copied into that layout otherwise.
        y: as x, with x's strides, and symmetric where x is c; None for x.
        out: [B, m, m] of x's dtype with contiguous rows or columns, overlapping nothing but c; None to make one.
        c: symmetric, as `out`, and may be `out`, or x itself; None for no such term.
    """
    rows = x.shape[1]
    wanted = (len(x), rows, rows)
    y = x if y is None else y
    if (y.shape, y.stride(), y.dtype) != (x.shape, x.stride(), x.dtype):
        raise ValueError(
            f"y: {y.dtype} {tuple(y.shape)} of strides {y.stride()}, "
            f"must be {x.dtype} {tuple(x.shape)} of strides {x.stride()} as x"
        )
    out = x.new_empty(wanted) if out is None else out
    term = out if c is None else c
    for name, tensor in (("out", out), ("c", term)):
        if tensor.shape != wanted or tensor.dtype != x.dtype:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}, must be {x.dtype} {wanted} for x")
    if out.data_ptr() in (x.data_ptr(), y.data_ptr()) and x.numel():
        raise ValueError("out: is in the place of x or y, which every tile reads")
    if not on_host(x.device):
        from . import tiled

        if c is x:
            x, y = faster_side(x), faster_side(y)
        unit, tiles = tiled.layout(x, y, out, term), tiled.triangles(x, 128)
        if x.device.type == "cpu" or faster(x.dtype, unit, rows, tiles, c is not None):
            return tiled.symmetric_product(x, y, out, alpha, beta, c)
    with full_float32():
        return add_product(term, x, y.mT, beta=0.0 if c is None else beta, alpha=alpha, out=out)


def add_product(
    c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float, alpha: float = 1.0, out: torch.Tensor
) -> torch.Tensor:
    """βC + αAB of every matrix of a batch by torch, into `out`, which on the CPU is fast if it is contiguous.

    Where the processor does not multiply a 16-bit format, torch would do it element by element: such matrices are
    multiplied in float32 and the result is rounded, which is what a GPU computes, too.
    """
    if on_host(a.device) and a.dtype in HALVES and not HALVES[a.dtype]():
        return out.copy_(torch.baddbmm(c.float(), a.float(), b.float(), beta=beta, alpha=alpha))
    return torch.baddbmm(c, a, b, beta=beta, alpha=alpha, out=out)


def matmul(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """AB of every pair of float32 matrices, at float32's accuracy; of float64 ones on the CPU.

        large ones as A_lo B_hi + A_hi B_lo + A_hi B_hi, where X = X_hi + X_lo but for 2⁻²³ of it, in TF32

    These take twice the memory of both operands, and a copy of one that is not dense; in large batches, of as many
    matrices as MOST_WORK allows at a time.

    Args:
        a, b: float32 [B, m, k] and [B, k, n], of any strides.
        out: float32 [B, m, n], overlapping neither; None to make one.
    """
    batch, rows, inner = a.shape
    cols = b.shape[2]
    out = a.new_empty((batch, rows, cols)) if out is None else out
    if b.shape != (batch, inner, cols) or out.shape != (batch, rows, cols):
        raise ValueError(f"shapes do not fit: {tuple(a.shape)} by {tuple(b.shape)} into {tuple(out.shape)}")
    if {a.dtype, b.dtype, out.dtype} not in ({torch.float32}, {torch.float64}):
        raise ValueError(
            f"dtypes must be torch.float32, or torch.float64 on the CPU, got {a.dtype} by {b.dtype} into {out.dtype}"
        )
    work = rows * inner * cols
    if min(rows, inner, cols) < SPLIT_SIDE or batch * work < SPLIT_WORK or on_host(a.device):
        with full_float32():
            return torch.bmm(a, b, out=out)
    most = max(1, MOST_WORK // max(1, work))
    for parts in zip(*(torch.split(tensor, most) for tensor in (a, b, out)), strict=True):
        _split_product(*parts)
    return out


def _split_product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """`matmul` in TF32, the small terms first."""
    from . import tiled

    (a_high, a_low), (b_high, b_low) = tiled.split(a), tiled.split(b)
    with float32_products("tf32"):
        torch.bmm(a_low, b_high, out=out)
        out.baddbmm_(a_high, b_low)
        out.baddbmm_(a_high, b_high)


def householder_(s: torch.Tensor, failed: torch.Tensor) -> torch.Tensor:
    """Replaces each S = QR whose `failed` is not 0 by Q, R's diagonal ≥ 0; which ones is decided on the device.

    Q is orthogonal whatever S's rank. The kernel works through a matrix in one program: a fallback, not a fast path.
    S is contiguous float32 [B, m, m], `failed` contiguous int32 [B].
    """
    batch, size = s.shape[:2]
    if s.dtype not in (torch.float32, torch.float64) or s.shape != (batch, size, size) or not s.is_contiguous():
        raise ValueError(
            f"s: {s.dtype} {tuple(s.shape)}, must be contiguous torch.float32 [B, m, m], or float64 on the CPU"
        )
    if failed.dtype != torch.int32 or failed.shape != (batch,) or not failed.is_contiguous():
        raise ValueError(f"failed: {failed.dtype} {tuple(failed.shape)}, must be contiguous torch.int32 ({batch},)")
    if not on_host(s.device):
        from . import tiled

        tiled.householder_(s, failed)
    else:
        chosen = failed != 0
        q, r = torch.linalg.qr(s[chosen])
        s[chosen] = torch.where(r.diagonal(dim1=1, dim2=2)[:, None] < 0, -q, q)
    return s


_switches = threading.RLock()  # of the process: a thread that turned them back would turn them for another


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """While it lasts, torch multiplies float32 matrices on a GPU in "ieee" or "tf32", whatever its switches say.

    Only the switch that cuBLAS calls read is turned, and turned back, to nothing of its own where that is enough; the
    older ones may not be read meanwhile.
    """
    switches = torch.backends.cuda.matmul
    with _switches:
        before = switches.fp32_precision
        if before == precision or {before, precision} == {"none", "ieee"}:  # the same thing
            yield
            return
        switches.fp32_precision = precision
        try:
            yield
        finally:
            switches.fp32_precision = "none"  # as the more general switches say
            if switches.fp32_precision != before:
                switches.fp32_precision = before


def full_float32() -> AbstractContextManager[None]:
    """While it lasts, torch multiplies float32 matrices in float32, whatever its TF32 switches say."""
    return float32_products("ieee")
