"""How rules and drivers compute: decided here once. (Matrix kernels have options of their own, in `tiles`.)

Multiply-adds are not contracted and square root and division are correctly rounded, so a float32 operation gives the
same bits compiled, interpreted and in NumPy. An optimizer step waits for memory, not for these instructions.
"""

from __future__ import annotations

from .language import tl, triton

# With a ceiling on registers of its own choosing, ptxas spills a few for one more block on a multiprocessor.
LAUNCH_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False, "maxnreg": 96}
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def square_root(x):
    """√x, correctly rounded."""
    return tl.sqrt_rn(x)


@triton.jit
def divide(x, y):
    """x / y, correctly rounded."""
    return tl.div_rn(x, y)


@triton.jit
def moving_average(average, x, beta, one_minus_beta):
    """βa + (1−β)x; 1−β comes from the host, since in float32 it would lose five digits at β = 0.999."""
    return beta * average + one_minus_beta * x


@triton.jit
def is_finite(x):
    """True where x is neither NaN nor infinite."""
    return tl.abs(x) < INFINITY


@triton.jit
def clip(x, low, high):
    """x within [low, high]; a NaN comes through, as min and max would not let it."""
    return tl.where(x > high, high, tl.where(x < low, low, x))


@triton.jit
def at_least(x, low):
    """x, or `low` where x is smaller; a NaN comes through."""
    return tl.where(x < low, low, x)


@triton.jit
def power(base, exponent):
    """base^exponent for base in [0, 1], or any positive base; for a step's scalars, in float64."""
    return tl.exp(exponent * tl.log(base))
