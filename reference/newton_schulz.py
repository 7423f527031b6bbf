"""Newton–Schulz: the nearest matrix with orthonormal rows or columns, approximately, in products alone."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from .arrays import Array
from .hyper import Hyper

Triple: TypeAlias = tuple[float, float, float]
Coefficients: TypeAlias = str | tuple[Triple, ...]

# Polar Express bounds the singular values by one in exact arithmetic. Shrinking all but the last polynomial's argument
# by 1.01 leaves room for what rounding adds in bfloat16.
_SAFETY = 1.01
_POLAR_EXPRESS = (
    (8.28721, -23.59589, 17.30039),
    (4.10706, -2.94785, 0.54484),
    (3.94869, -2.90890, 0.55182),
    (3.31842, -2.48849, 0.51005),
    (2.30065, -1.66890, 0.41881),
    (1.89130, -1.26800, 0.37680),
)
COEFFICIENTS: dict[str, tuple[Triple, ...]] = {
    "keller": ((3.4445, -4.7750, 2.0315),),
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": (
        *((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _POLAR_EXPRESS),
        (1.875, -1.25, 0.375),
    ),
    "cans": (
        (8.4703, -25.1081, 18.6293),
        (4.1828, -3.1087, 0.5806),
        (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074),
        (2.2737, -1.6447, 0.4162),
    ),
}
STEPS = Hyper("steps", 5, "[1, 100]", "int", doc="iterations of Newton–Schulz")
POLYNOMIALS = Hyper(
    "coefficients",
    "keller",
    "(-inf, inf)",
    "coefficients",
    choices=tuple(COEFFICIENTS),
    doc="(a, b, c) of each iteration of Newton–Schulz, the last for all further ones; or the name of such a list",
)
EPS = Hyper("eps", 1e-7, "(0, inf)", doc="added to the norm that a matrix is divided by")


def schedule(coefficients: Coefficients, steps: int) -> tuple[Triple, ...]:
    """The triple of each iteration: a named or given list, cut to so many steps or continued with its last.

    Raises:
        ValueError: an unknown name, not a list of triples of finite numbers, or steps not in [1, 100].
    """
    steps, checked = STEPS.check(steps), POLYNOMIALS.check(coefficients)
    triples = COEFFICIENTS[checked] if isinstance(checked, str) else checked
    return tuple(triples[min(step, len(triples) - 1)] for step in range(steps))


def newton_schulz(x: ArrayLike, steps: int = 5, coefficients: Coefficients = "keller", eps: float = 1e-7) -> Array:
    """Every matrix with its singular values moved close to one, its singular vectors kept.

        X ← X/(‖X‖ + eps), transposed if it has more rows than columns
        A = XXᵀ,  X ← aX + (bA + cA²)X     with (a, b, c) of each step
        transpose back

    A singular value σ of X/(‖X‖ + eps) becomes p_steps(…p_1(σ)), p(σ) = aσ + bσ³ + cσ⁵; zero stays zero.

    Args:
        x: float64 [..., m, n], matrices in the last two dimensions.
        steps: iterations, in [1, 100].
        coefficients: "keller", "quintic", "polar_express", "cans", or a list of triples (a, b, c); its last goes on.
        eps: > 0, for matrices of zeros.

    Raises:
        ValueError: x has fewer than two dimensions, or see `schedule`.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (the iteration and "keller");
    Cesista 2025 (leloykun.github.io/ponder/muon-opt-coeffs), "quintic", in the numbers of Jordan's modded-nanogpt;
    Amsel et al. 2025 (arXiv 2505.16932), "polar_express"; Grishina et al. 2025 (arXiv 2506.10935), "cans".
    """
    matrices = np.asarray(x, np.float64)
    if matrices.ndim < 2:
        raise ValueError(f"x must have at least two dimensions, got shape {matrices.shape}")
    eps = EPS.check(eps)
    tall = matrices.shape[-2] > matrices.shape[-1]
    if tall:
        matrices = np.swapaxes(matrices, -1, -2)
    matrices = matrices / (np.linalg.norm(matrices, axis=(-2, -1), keepdims=True) + eps)
    for a, b, c in schedule(coefficients, steps):
        gram = matrices @ np.swapaxes(matrices, -1, -2)
        matrices = a * matrices + (b * gram + c * gram @ gram) @ matrices
    return np.swapaxes(matrices, -1, -2) if tall else matrices
