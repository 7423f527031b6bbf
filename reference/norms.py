"""Norms of arrays that may hold NaN or infinity, and gradient clipping by them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from .hyper import Hyper

MAX_NORM = Hyper("max_norm", interval="[0, inf]", doc="largest norm left alone")


def l2_norm(x: ArrayLike) -> float:
    """‖x‖ = √(Σ x²) over the finite entries of an array of any shape, in float64."""
    values = np.asarray(x, np.float64)
    return float(np.linalg.norm(values[np.isfinite(values)]))


def global_grad_clip_scale(grads: Iterable[ArrayLike], max_norm: float) -> float:
    """The factor that brings the norm of all gradients together down to max_norm: min(1, max_norm/‖all grads‖).

    Args:
        grads: arrays of any shapes; non-finite entries are left out of the norm (see `has_nonfinite`).
        max_norm: in [0, inf].

    Raises:
        ValueError: max_norm is no number in that range.
    """
    max_norm = MAX_NORM.check(max_norm)
    norm = l2_norm([l2_norm(grad) for grad in grads])
    return max_norm / norm if norm > max_norm else 1.0


def has_nonfinite(grads: Iterable[ArrayLike]) -> bool:
    """Whether any entry of any array is NaN or infinite."""
    return not all(np.isfinite(grad).all() for grad in grads)
