"""Matrices of given singular values, and what Newton–Schulz makes of them step by step."""

from __future__ import annotations

import numpy as np
import torch

from rlx_gpu import reference
from rlx_gpu.reference.newton_schulz import COEFFICIENTS

HALVES = (torch.float16, torch.bfloat16)
# In bfloat16 "cans" diverges or not by chance, in whatever order its operations are rounded.
STEADY = [(dtype, name) for dtype in HALVES for name in COEFFICIENTS if (dtype, name) != (torch.bfloat16, "cans")]
# Singular values by what is hard about them; the Gram form sees their squares.
HARD = {
    "flat": np.ones(48),
    "steep": np.logspace(0, -6, 48),
    "less steep": np.logspace(0, -3, 48),
    "one huge": np.r_[1e4, np.ones(47)],
    "one large": np.r_[30.0, np.ones(47)],
    "rank deficient": np.r_[np.ones(24), np.zeros(24)],
    "few": np.r_[np.ones(4), np.full(44, 1e-3)],
    "power law": 1.0 / np.arange(1, 49),
}


def expected(x, steps=5, coefficients="keller"):
    return torch.from_numpy(reference.newton_schulz(x.double().numpy(), steps, coefficients))


def with_singular_values(values, n):
    """A float32 matrix of these singular values and n columns."""
    left = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64)).Q
    return (left * torch.tensor(values, dtype=torch.float64) @ right.mT).float()


def step_by_step(x, triples):
    """The iteration as it is written, every operation rounded to x's format."""
    for a, b, c in triples:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def relative(x, wanted):
    """‖x − wanted‖ / ‖wanted‖."""
    return float((x.double() - wanted).norm() / wanted.norm())
