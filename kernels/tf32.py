"""Float32 numbers as sums of two TF32 numbers, whose products tensor cores multiply at float32's accuracy."""

from __future__ import annotations

from .arithmetic import is_finite
from .language import tl, triton

BLOCK = 2048
HALF = tl.constexpr(0x1000)  # of the last bit kept
KEPT = tl.constexpr(-0x2000)  # sign, exponent and 10 of 23 mantissa bits
EXPONENT = tl.constexpr(0x7F800000)


@triton.jit
def _nearest_tf32(x):
    """x rounded to 10 mantissa bits, halves away from zero; cut instead where that would overflow."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + HALF) & KEPT
    kept = tl.where((rounded & EXPONENT) == EXPONENT, bits & KEPT, rounded)
    return kept.to(tl.float32, bitcast=True)


@triton.jit
def _split(x_ptr, high_ptr, low_ptr, mask):
    x = tl.load(x_ptr, mask=mask)
    finite = is_finite(x)
    high = _nearest_tf32(x)
    low = _nearest_tf32(x - high)
    tl.store(high_ptr, tl.where(finite, high, tl.where(x < 0.0, -1.0, 1.0)), mask=mask)
    tl.store(low_ptr, tl.where(finite, low, x), mask=mask)


@triton.jit(do_not_specialize=["numel"])
def split_kernel(x_ptr, high_ptr, low_ptr, numel, BLOCK: tl.constexpr):
    """High and low TF32 numbers whose sum is x to 2⁻²³ of it; float32 [numel] each.

    Where x is infinite or NaN they are ±1 and x: in lo·hi + hi·lo + hi·hi no 0·∞ and no ∞ − ∞ arises that the product
    itself has not.
    """
    program = tl.program_id(0).to(tl.int64)
    lanes = program * BLOCK + tl.arange(0, BLOCK)
    x_ptr += lanes
    high_ptr += lanes
    low_ptr += lanes
    if (program + 1) * BLOCK <= numel:  # without a mask: 16 bytes at a time
        _split(x_ptr, high_ptr, low_ptr, None)
    else:
        _split(x_ptr, high_ptr, low_ptr, lanes < numel)
