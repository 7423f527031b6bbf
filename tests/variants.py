"""Every optimizer of the registry, and those hyperparameters that choose another variant of one."""

from __future__ import annotations

from typing import Any

import rlx_gpu

OPTIMIZERS = list(rlx_gpu.TABLE)
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
}
# Readable id -> name and hyperparameters, always with weight decay.
VARIANTS = {name: (name, BASE) for name in OPTIMIZERS} | {
    variant: (name, {**BASE, **choice}) for variant, (name, choice) in _CHOICES.items()
}
