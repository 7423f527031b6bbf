"""Every optimizer of the registry, and those hyperparameters that choose another variant of one."""

from __future__ import annotations

from typing import Any

import rlx_gpu

OPTIMIZERS = list(rlx_gpu.TABLE)
MATRIX = ("Muon", "SOAP", "KronPSGD")  # they take workspace for the matrices that they multiply
SCHEDULED = ("SOAP", "KronPSGD")  # with skip_nonfinite they wait: which launches they make depends on the step count
BASE = {"lr": 0.05, "weight_decay": 0.1}
_CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD-momentum": ("SGD", {"momentum": 0.9, "dampening": 0.3}),
    "SGD-nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "Adam-amsgrad": ("Adam", {"amsgrad": True}),
    "AdamW-amsgrad": ("AdamW", {"amsgrad": True}),
    "NAdamW-scheduled": ("NAdamW", {"momentum_decay": 4e-3}),
    "LAMB-uncorrected": ("LAMB", {"bias_correction": False}),
    "MARS-unclipped": ("MARS", {"clip_c": False}),
    "Adafactor-relative": ("Adafactor", {"lr": None}),
    "Muon-sgd": ("Muon", {"ns_dtype": "float32", "nesterov": False, "fallback": "sgd"}),
}
# What of a matrix optimizer is as exact as an elementwise one: float32 in the iteration, no basis to be found. What
# needs bases and dense factors has tests of its own, in tests/matrix.
_EXACT: dict[str, dict[str, Any]] = {
    "Muon": {"ns_dtype": "float32"},
    "SOAP": {"max_precond_dim": 0},
    "KronPSGD": {"max_precond_dim": 0},
}
# Readable id -> name and hyperparameters, always with weight decay.
VARIANTS = {name: (name, {**BASE, **_EXACT.get(name, {})}) for name in OPTIMIZERS} | {
    variant: (name, {**BASE, **choice}) for variant, (name, choice) in _CHOICES.items()
}
