"""What the kernels of matrix products share: tiles, their order, and the sum over the inner dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
import triton.language as tl

ALIGNED = 8  # elements: 16 bytes of the narrowest format
# Tensor cores contract multiply-adds anyway. All registers: left to itself, ptxas spills a few on sm_100 to use fewer.
MATRIX_OPTIONS = {"maxnreg": 255, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: square tiles of `block`, `depth` of the inner dimension at a time."""

    block: int
    depth: int
    warps: int
    stages: int
    group: int = 8

    @property
    def constants(self) -> dict[str, int]:
        """The kernels' compile-time arguments."""
        return {"BLOCK": self.block, "DEPTH": self.depth, "GROUP": self.group}

    @property
    def options(self) -> dict[str, Any]:
        """What to launch them with."""
        return {"num_warps": self.warps, "num_stages": self.stages, **MATRIX_OPTIONS}


class Tilings(NamedTuple):
    """Tiles for one format: many of them, few of them, and layouts that allow no vector loads."""

    large: Tiling
    small: Tiling
    unaligned: Tiling


def tilings(element_bytes: int, capability: int) -> Tilings:
    """The tiles for a format on an architecture.

    Args:
        element_bytes: 2 or 4.
        capability: the architecture, such as 90.
    """
    if element_bytes == 2:
        large, small = Tiling(128, 64, warps=8, stages=3), Tiling(64, 64, warps=4, stages=3)
        return Tilings(large, small, Tiling(64, 32, warps=4, stages=3))
    small = Tiling(64, 32, warps=4, stages=3)
    # Before sm_90 the operands of TF32's three products lie in registers, which large tiles exceed.
    return Tilings(Tiling(128, 32, warps=8, stages=3) if capability >= 90 else small, small, small)


@triton.jit
def hinted(value, HINT: tl.constexpr):
    """The value, which the compiler knows to be a multiple of 8 where HINT says that it is one."""
    return value // 8 * 8 if HINT else value


@triton.jit
def stride(value, UNIT: tl.constexpr, HINT: tl.constexpr):
    """A stride in 64 bits, known to be 1 or a multiple of 8 where UNIT or HINT says so."""
    return 1 if UNIT else hinted(value.to(tl.int64), HINT)


@triton.jit
def tile_lanes(tile, BLOCK: tl.constexpr):
    """The indices of a tile's rows or columns."""
    return tile * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def wrapped(lanes, extent, WHOLE: tl.constexpr):
    """Indices wrapped into the matrix: what is loaded with them needs no mask, and what comes of it is not stored."""
    return lanes if WHOLE else lanes % extent


@triton.jit
def tile_product(
    a_ptr,
    a_row,
    a_col,
    b_ptr,
    b_row,
    b_col,
    rows,
    cols,
    inner,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Σₖ A[rows, k] B[k, cols] in float32; float32 operands by three products in TF32, exact to float32's last bits."""
    steps = tl.arange(0, DEPTH)
    a_ptrs = a_ptr + (rows[:, None] * a_row + steps[None, :] * a_col)
    b_ptrs = b_ptr + (steps[:, None] * b_row + cols[None, :] * b_col)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for k in range(0, inner, DEPTH):
        if WHOLE:
            a = tl.load(a_ptrs)
            b = tl.load(b_ptrs)
        else:
            inside = steps < inner - k
            a = tl.load(a_ptrs, mask=inside[None, :], other=0.0)
            b = tl.load(b_ptrs, mask=inside[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="tf32x3")
        a_ptrs += DEPTH * a_col
        b_ptrs += DEPTH * b_row
    return total
