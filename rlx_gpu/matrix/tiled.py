"""Launches of the matrix kernels: which tiles, and which of a kernel's variants a layout allows."""

from __future__ import annotations

from functools import cache
from math import ceil

import torch

from ..engine import launch
from ..engine.devices import on_device
from ..engine.memory import is_dense
from ..kernels.householder import CONSTANTS, LAUNCH_OPTIONS, householder_kernel
from ..kernels.symmetric import symmetric_product_kernel
from ..kernels.tf32 import BLOCK as SPLIT_BLOCK
from ..kernels.tf32 import split_kernel
from ..kernels.tiles import ALIGNED, Tiling, tilings


def symmetric_product(
    x: torch.Tensor, y: torch.Tensor, out: torch.Tensor, alpha: float, beta: float, c: torch.Tensor | None
) -> torch.Tensor:
    """As `products.symmetric_product`; float32 is copied where that makes the inner dimension contiguous."""
    rows, inner = x.shape[1:]
    upright, term = _upright("out", out), _upright("c", out if c is None else c)
    unit = layout(x, y, upright, term)
    if unit == "cols" and _unit(x) != "cols":
        given, x = x, x.contiguous()
        y = x if y is given else y.contiguous()
    tiling = _tiling(x, unit)
    with on_device(x.device):
        launch.launch(
            symmetric_product_kernel,
            triangles(x, tiling.block),
            *(x, y, term, upright, rows, inner, ceil(rows / tiling.block)),
            *(*_strides(x), *_strides(term)[:2], *_strides(upright)[:2]),
            *(float(alpha), float(beta)),
            HAS_C=c is not None,
            UNIT=unit,
            WHOLE=unit != "none" and rows % tiling.block == 0 and inner % tiling.depth == 0,
            **tiling.constants,
            **tiling.options,
        )
    return out


def triangles(x: torch.Tensor, block: int) -> int:
    """How many tiles the lower triangles of all products have."""
    tiles = ceil(x.shape[1] / block)
    return len(x) * tiles * (tiles + 1) // 2


def split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 tensors of two TF32 numbers each, whose sum is x; a x that is not dense is copied first."""
    x = x if is_dense(x) else x.contiguous()
    high, low = torch.empty_like(x), torch.empty_like(x)
    with on_device(x.device):
        launch.launch(split_kernel, ceil(x.numel() / SPLIT_BLOCK), x, high, low, x.numel(), BLOCK=SPLIT_BLOCK)
    return high, low


def householder_(s: torch.Tensor, failed: torch.Tensor) -> None:
    """As `products.householder_`."""
    batch, size = s.shape[:2]
    with on_device(s.device):
        launch.launch(householder_kernel, batch if size else 0, s, failed, size, **CONSTANTS, **LAUNCH_OPTIONS)


def layout(x: torch.Tensor, y: torch.Tensor, *others: torch.Tensor) -> str:
    """Which stride of X and Y is 1 for the kernel, "rows" or "cols", if all tensors allow vector loads; or "none".

    Tensor cores take TF32 operands with a contiguous inner dimension only: float32 will be copied into that layout.
    """
    copied = x.dtype == torch.float32 and _unit(x) != "cols"
    whole = all(size % ALIGNED == 0 for size in x.shape[1:])
    if not whole or not _aligned(*others, *(() if copied else (x, y))):
        return "none"
    return "cols" if copied else _unit(x)


def _tiling(x: torch.Tensor, unit: str) -> Tiling:
    """The tiles for a matrix in this layout."""
    choice = tilings(x.element_size(), _capability(x.device))
    if unit == "none":
        return choice.unaligned
    return choice.large if triangles(x, 128) >= choice.many else choice.small


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
    steps = [step for tensor in tensors for step in _strides(tensor) if step != 1]
    sizes = [size for tensor in tensors for size in tensor.shape[1:]]
    return not any(number % ALIGNED for number in steps + sizes) and not any(t.data_ptr() % 16 for t in tensors)
