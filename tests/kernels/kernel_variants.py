"""Every way of running every optimizer of the registry: what the kernel tests iterate.

An optimizer that joins the registry is here without a line of its own, in its plain form and with each of its switches
turned. `EXTRA` adds what the declarations cannot tell: values that open another branch, and switches that need company.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import rlx_gpu
import rlx_gpu.reference
from rlx_gpu.table import TABLE, Algorithm

# Shared by all that take them, so that two optimizers differ by their rule alone. A large lr makes the update nearly as
# large as the parameter; a short memory of the second moment takes RAdam past its first branch and makes AMSGrad's
# maximum matter.
COMMON = {"lr": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.95)}
# Those of matrices are tested in tests/matrix, their fallbacks too.
ALGORITHMS = {
    name: algorithm
    for name, algorithm in TABLE.items()
    if "matrix" not in {hyper.name for hyper in algorithm.hyperparameters}
}

EXTRA: dict[str, dict[str, dict[str, Any]]] = {
    "SGD": {
        "momentum": {"momentum": 0.9},
        "dampening": {"momentum": 0.9, "dampening": 0.5},
        "nesterov": {"momentum": 0.9, "nesterov": True},
    },
    "NAdamW": {"momentum_decay": {"momentum_decay": 0.5}},
    "QHAdamW": {"plain": {"nus": (0.7, 0.8)}},  # by default nu2 = 1, which hides a term
    "Sophia": {"plain": {"gamma": 1.0, "rho": 0.5}},  # clips some elements of the estimates below, not all
    "Adafactor": {"lr_none": {"lr": None}},
}


@dataclass(frozen=True)
class Variant:
    """One optimizer with the hyperparameters that make it run one of its rules."""

    name: str
    label: str
    hyper: dict[str, Any] = field(hash=False)

    def __str__(self) -> str:
        return f"{self.name}-{self.label}"

    @property
    def algorithm(self) -> Algorithm:
        return TABLE[self.name]

    def make(self, face: ModuleType = rlx_gpu, **options: Any) -> Any:
        """The trait of `rlx_gpu`, or of `rlx_gpu.reference`."""
        return getattr(face, self.name)(**{**self.hyper, **options})

    def specs(self, ndims: set[int]) -> list[Any]:
        """The rules that parameters of these numbers of dimensions run."""
        hyper = self.algorithm.resolve(self.hyper)
        return list({id(s): s for s in (self.algorithm.rules.select(hyper, ndim) for ndim in ndims)}.values())


def _variants(algorithm: Algorithm) -> list[Variant]:
    declared = {hyper.name: hyper for hyper in algorithm.hyperparameters}
    common = {key: value for key, value in COMMON.items() if key in declared}
    given = {"plain": {}, **EXTRA.get(algorithm.name, {})}
    for hyper in declared.values():
        if hyper.kind == "bool" and hyper.name not in given:
            given[hyper.name] = {hyper.name: not hyper.default}
    return [Variant(algorithm.name, label, {**common, **hyper}) for label, hyper in given.items()]


VARIANTS = [variant for algorithm in ALGORITHMS.values() for variant in _variants(algorithm)]


def variant(text: str) -> Variant:
    """The variant of this id, such as "AdamW-plain"."""
    (found,) = [candidate for candidate in VARIANTS if str(candidate) == text]
    return found
