"""The tiles that symmetric products are cut into, and the sum over the inner dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .language import tl, triton

ALIGNED = 8  # elements: 16 bytes of the narrowest format
# Multiply-adds are contracted, as tensor cores do in any case. A kernel may use every register: of its own accord ptxas
# uses fewer on sm_100, and spills.
MATRIX_OPTIONS = {"maxnreg": 255, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Tiling:
    """How a product is cut."""

    block: int  # side of the square tiles
    depth: int  # of the inner dimension at a time
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
    """Tiles for one format: from `many` tiles of 128 × 128 on, below, and for layouts that allow no vector loads."""

    large: Tiling
    small: Tiling
    unaligned: Tiling
    many: int


def tilings(element_bytes: int, capability: int) -> Tilings:
    """The fastest tiles for a format on an architecture such as 90, measured on an H200 (Triton 3.6, 2026-11-22)."""
    unaligned = Tiling(64, 32, warps=8, stages=3)  # correct, not fast: on a GPU torch is
    if element_bytes == 2:
        # Where C is added to the sums of four warps, sm_80 and sm_100 have too few registers for both.
        large = Tiling(128, 64, warps=4 if capability == 90 else 8, stages=3)
        return Tilings(large, Tiling(64, 64, warps=4, stages=3), unaligned, many=144)
    small = Tiling(64, 32, warps=4, stages=3)
    # Only the tensor cores of sm_9x and sm_10x take operands from shared memory. On others, sm_12x among them, those of
    # TF32's three products lie in registers, which large tiles exceed.
    large = Tiling(128, 32, warps=8, stages=3) if capability // 10 in (9, 10) else small
    return Tilings(large, small, unaligned, many=512)


@triton.jit
def hinted(value, HINT: tl.constexpr):
    """The value, which the compiler knows to be a multiple of 8 where HINT says that it is one."""
    return value // 8 * 8 if HINT else value


@triton.jit
def stride(value, UNIT: tl.constexpr, HINT: tl.constexpr):
    """A stride in 64 bits, known to be 1 or a multiple of 8 where UNIT or HINT says so."""
    return 1 if UNIT else hinted(value.to(tl.int64), HINT)


@triton.jit
def tile_product(
    x_ptr, y_ptr, row, col, rows, cols, inner, BLOCK: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr
):
    """Σₖ X[rows, k] Y[cols, k] in float32; float32 X, Y by three products in TF32, exact to float32's last bits.

    Both have the strides `row` and `col`.
    """
    steps = tl.arange(0, DEPTH)
    left_ptrs = x_ptr + (rows[:, None] * row + steps[None, :] * col)
    right_ptrs = y_ptr + (steps[:, None] * col + cols[None, :] * row)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for k in range(0, inner, DEPTH):
        if WHOLE:
            left = tl.load(left_ptrs)
            right = tl.load(right_ptrs)
        else:
            inside = steps < inner - k
            left = tl.load(left_ptrs, mask=inside[None, :], other=0.0)
            right = tl.load(right_ptrs, mask=inside[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision="tf32x3")
        left_ptrs += DEPTH * col
        right_ptrs += DEPTH * col
    return total
