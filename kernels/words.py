"""The words that every launch of a step reads before anything else, from what the caller has given for the step.

Tables, all on the device (built by `rlx_gpu.engine.words`):
    given   float32 [4]: FACTOR on every gradient; DIVISOR, the scale that the loss was multiplied by; FOUND_INF, which
            has the step skipped unless it is 0; MAX_NORM, that gradients are clipped to with CLIPPED.
    words   float32 [2]: the factor that launches multiply gradients by, and whether they leave everything untouched.
    totals  float32 [COUNT, 2]: squared norms of gradients as they lie in memory, and how many entries are not finite.
    norm    float32 [1]: the norm of all gradients, scaled but not clipped; NaN if an entry is not finite.
"""

from __future__ import annotations

from .arithmetic import INFINITY
from .language import tl, triton

SCALE, SKIP = (tl.constexpr(i) for i in range(2))
FACTOR, DIVISOR, FOUND_INF, MAX_NORM = (tl.constexpr(i) for i in range(4))


@triton.jit
def words_kernel(
    given_ptr,
    totals_ptr,
    words_ptr,
    norm_ptr,
    COUNT: tl.constexpr,
    GUARDED: tl.constexpr,
    CLIPPED: tl.constexpr,
):
    """The words of one step; with GUARDED, an entry, factor or norm to clip that is not finite has it skipped.

    The divisor's inverse is rounded to float32, as torch's GradScaler does it. The norm that is clipped to is that of
    the finite entries.
    """
    inverse = (1.0 / tl.load(given_ptr + DIVISOR).to(tl.float64)).to(tl.float32)
    scale = tl.load(given_ptr + FACTOR).to(tl.float64) * inverse.to(tl.float64)
    bad = tl.load(given_ptr + FOUND_INF).to(tl.float64)
    if COUNT > 0:
        squares = tl.load(totals_ptr).to(tl.float64)
        nonfinite = tl.load(totals_ptr + 1).to(tl.float64)
        for i in tl.static_range(1, COUNT):
            squares += tl.load(totals_ptr + 2 * i).to(tl.float64)
            nonfinite += tl.load(totals_ptr + 2 * i + 1).to(tl.float64)
        norm = tl.sqrt(squares) * tl.abs(scale)
        tl.store(norm_ptr, tl.where(nonfinite > 0.0, float("nan"), norm).to(tl.float32))
        if CLIPPED:
            max_norm = tl.load(given_ptr + MAX_NORM).to(tl.float64)
            scale = tl.where(norm > max_norm, scale * (max_norm / norm), scale)
        if GUARDED:
            bad += tl.where(tl.abs(scale) < INFINITY, nonfinite, 1.0)
            if CLIPPED:  # to nothing, where the norm has overflowed
                bad += tl.where(norm < INFINITY, 0.0, 1.0)
    tl.store(words_ptr + SCALE, scale.to(tl.float32))
    tl.store(words_ptr + SKIP, tl.where(bad != 0.0, 1.0, 0.0))
