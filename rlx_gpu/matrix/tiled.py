"""Launches of the matrix kernels: which tiles, and which of a kernel's variants a layout allows."""

from __future__ import annotations

from functools import cache
from math import ceil

import torch

from ..kernels.householder import CONSTANTS, LAUNCH_OPTIONS, householder_kernel
from ..kernels.matmul import matmul_kernel
from ..kernels.symmetric import symmetric_product_kernel
from ..kernels.tiles import ALIGNED, Tiling, tilings
from ..launch import launch, on_device


def symmetric_product(
    x: torch.Tensor, out: torch.Tensor, alpha: float, beta: float, c: torch.Tensor | None, large: bool
) -> None:
    """As `products.symmetric_product`, in large tiles if the layout allows them."""
    batch, rows, inner = x.shape
    out, term = _upright("out", out), _upright("c", out if c is None else c)
    aligned = _aligned(x, out, term) and _unit(x) != "none"
    tiling = _tiling(x, aligned, large)
    tiles = ceil(rows / tiling.block)
    with on_device(x.device):
        launch(
            symmetric_product_kernel,
            batch * tiles * (tiles + 1) // 2,
            *(x, term, out, rows, inner, tiles),
            *(*_strides(x), *_strides(term)[:2], *_strides(out)[:2]),
            *(float(alpha), float(beta)),
            HAS_C=c is not None,
            UNIT=_unit(x) if aligned else "none",
            WHOLE=aligned and rows % tiling.block == 0 and inner % tiling.depth == 0,
            **tiling.constants,
            **tiling.options,
        )


def matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, large: bool) -> None:
    """As `products.matmul`, in large tiles if the layout allows them."""
    if _unit(out) == "rows":
        a, b, out = b.mT, a.mT, out.mT
    if _unit(out) != "cols":
        raise ValueError(f"out: rows or columns must be contiguous, got strides {out.stride()}")
    (batch, rows, inner), cols = a.shape, b.shape[2]
    aligned = _aligned(a, b, out) and "none" not in (_unit(a), _unit(b))
    tiling = _tiling(a, aligned, large)
    tile_rows, tile_cols = ceil(rows / tiling.block), ceil(cols / tiling.block)
    with on_device(a.device):
        launch(
            matmul_kernel,
            batch * tile_rows * tile_cols,
            *(a, b, out, rows, cols, inner, tile_rows, tile_cols),
            *(*_strides(a), *_strides(b), *_strides(out)[:2]),
            A_UNIT=_unit(a) if aligned else "none",
            B_UNIT=_unit(b) if aligned else "none",
            WHOLE=aligned and rows % tiling.block == cols % tiling.block == inner % tiling.depth == 0,
            **tiling.constants,
            **tiling.options,
        )


def householder_(s: torch.Tensor, failed: torch.Tensor) -> None:
    """As `products.householder_`."""
    batch, size = s.shape[:2]
    with on_device(s.device):
        launch(householder_kernel, batch if size else 0, s, failed, size, **CONSTANTS, **LAUNCH_OPTIONS)


def _tiling(x: torch.Tensor, aligned: bool, large: bool) -> Tiling:
    """The tiles for tensors of this device and format."""
    choice = tilings(x.element_size(), _capability(x.device))
    if not aligned:
        return choice.unaligned
    return choice.large if large else choice.small


@cache
def _capability(device: torch.device) -> int:
    """90 for compute capability 9.0, and for interpreted kernels."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    return 10 * major + minor


def _upright(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A symmetric matrix, or one with contiguous rows, as rows of stride 1."""
    unit = _unit(tensor)
    if unit == "none":
        raise ValueError(f"{name}: rows or columns must be contiguous, got strides {tensor.stride()}")
    return tensor if unit == "cols" else tensor.mT


def _unit(tensor: torch.Tensor) -> str:
    """Which stride is 1: between neighbours of a column ("rows") or of a row ("cols"), or none."""
    _, row, col = tensor.stride()
    return "cols" if col == 1 else "rows" if row == 1 else "none"


def _strides(tensor: torch.Tensor) -> tuple[int, int, int]:
    """The strides, 0 for that of a batch of one, which does not matter."""
    batch, row, col = tensor.stride()
    return (batch if tensor.shape[0] > 1 else 0), row, col


def _aligned(*tensors: torch.Tensor) -> bool:
    """Whether rows can be read 16 bytes at a time: sizes, strides that are not 1, and addresses are multiples."""
    for tensor in tensors:
        numbers = (*tensor.shape[1:], *(step for step in _strides(tensor) if step != 1))
        if any(number % ALIGNED for number in numbers) or tensor.data_ptr() % 16:
            return False
    return True
