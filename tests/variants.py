"""Which optimizers and variants the tests iterate; `rlx_gpu.parity.variants` makes them of the registry."""

from __future__ import annotations

from typing import Any

import torch

from rlx_gpu.parity.variants import Variant, variants
from rlx_gpu.table import TABLE

OPTIMIZERS = list(TABLE)
MATRIX = [name for name, algorithm in TABLE.items() if algorithm.of_matrices]
SCHEDULED = ("SOAP", "KronPSGD")  # with skip_nonfinite they wait: which launches they make depends on the step count
BASE = {"lr": 0.05, "weight_decay": 0.1}
ELEMENTWISE = [variant for name in OPTIMIZERS if name not in MATRIX for variant in variants(TABLE[name])]
# What of a matrix optimizer is as exact as an elementwise one: float32 in the iteration, no basis to be found. What
# needs bases and dense factors has tests of its own, in tests/matrix.
_EXACT = {"Muon": {"ns_dtype": "float32"}, "SOAP": {"max_precond_dim": 0}, "KronPSGD": {"max_precond_dim": 0}}
_ALL = [
    *ELEMENTWISE,
    *(Variant(TABLE[name], {}) for name in MATRIX),
    Variant(TABLE["Muon"], {"nesterov": False, "fallback": "sgd"}),
]
# Readable id -> name and hyperparameters, always with weight decay; the defaults for the others.
VARIANTS = {
    str(variant): (variant.algorithm.name, {**BASE, **_EXACT.get(variant.algorithm.name, {}), **variant.switches})
    for variant in _ALL
}
# Those that torch.optim has, by the same names and hyperparameters.
TORCH = [variant for variant, (name, _) in VARIANTS.items() if name in ("SGD", "Adam", "AdamW")]


def torchs(variant: str, params: Any, **more: Any) -> torch.optim.Optimizer:
    """torch's own optimizer of this id."""
    name, hyper = VARIANTS[variant]
    return getattr(torch.optim, name)(params, **{**hyper, **more})


def named(text: str) -> Variant:
    """The elementwise variant of this id, such as "AdamW(amsgrad=True)"."""
    (found,) = [variant for variant in ELEMENTWISE if str(variant) == text]
    return found
