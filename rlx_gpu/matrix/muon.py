"""Muon on batches of matrices: the iteration between momentum and update."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ..reference.newton_schulz import schedule
from .newton_schulz import oriented, orthogonalize_
from .step import MatrixStep

MOST_ELEMENTS = 2**30  # that are prepared at a time: more than a model of a billion parameters has


def direction(grad: torch.Tensor, state: Mapping[str, torch.Tensor], step: MatrixStep) -> torch.Tensor:
    """s·X of θ ← θ − lr(s·X + λθ), by the iteration of `rlx_gpu.reference.newton_schulz`.

    Beside the batch this takes what `orthogonalize_` needs.

    Args:
        grad: X = U/(‖U‖ + eps), [B, m, n] in `ns_dtype`, of any memory order; overwritten.
        state: nothing: the momentum stays with the parameters.
        step: `ns_coefficients`, `ns_steps` and `adjust_lr_fn`.

    Returns:
        [B, m, n], in the memory of `grad`.
    """
    hyper = step.hyper
    *triples, last = schedule(hyper["ns_coefficients"], hyper["ns_steps"])
    scale = update_scale(hyper["adjust_lr_fn"], *grad.shape[1:])
    a, b, c = (scale * coefficient for coefficient in last)  # in which the step is linear
    matrices = oriented(grad)
    result = orthogonalize_(matrices, (*triples, (a, b, c)))
    if result.data_ptr() != matrices.data_ptr():
        matrices.copy_(result)
    return grad


def update_scale(adjust_lr_fn: str, rows: int, cols: int) -> float:
    """s: the factor that makes the update's size independent of the matrix's shape."""
    return {
        "original": math.sqrt(max(1.0, rows / cols)),
        "match_rms_adamw": 0.2 * math.sqrt(max(rows, cols)),
        "unit_rms": math.sqrt(max(rows, cols)),
        "spectral": math.sqrt(rows / cols),
    }[adjust_lr_fn]
