"""What torch.optim's checkpoints say otherwise than ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..engine.state import STEP


def group_from_torch(name: str, group: Mapping[str, Any]) -> dict[str, Any]:
    """A param group of torch.optim's optimizer of this name, in our terms.

    torch's Muon has one triple of coefficients for all iterations, and None where we say "original".
    """
    if name != "Muon":
        return dict(group)
    return {
        **group,
        "ns_coefficients": (tuple(group["ns_coefficients"]),),
        "adjust_lr_fn": group["adjust_lr_fn"] or "original",
    }


def slots_from_torch(name: str, slots: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state of torch.optim's optimizer of this name, in our terms.

    torch's SGD and Muon count no steps: a buffer means that it was not the first. torch's Muon averages gradients
    where ours adds them up, so that its buffer is 1 − μ times ours; the orthogonalised update is the same.
    """
    found = dict(slots)
    if name in ("SGD", "Muon") and "momentum_buffer" in found:
        found.setdefault(STEP, torch.tensor(1.0))
    if name == "Muon" and "momentum_buffer" in found:
        found["momentum_buffer"] = found["momentum_buffer"] / (1.0 - group["momentum"])
    return found
