"""Every optimizer in every way of running it; one that joins the registry is here without a line of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from types import ModuleType
from typing import Any

import rlx_gpu

from ..naming import chosen
from ..reference.hyper import Hyper
from ..table import TABLE, Algorithm

# Values for the hyperparameters of these names, so that each matters within a few steps: a large lr makes the update
# nearly as large as the parameter, a short memory of the second moment takes RAdam past its first branch and makes
# AMSGrad's maximum matter, nu2 < 1 and a rho that clips some elements, not all, leave no term without effect.
# A matrix is iterated in float32, since the reference does not round between iterations; stagger only decides when a
# basis changes.
COMMON = {
    "lr": 0.1,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "nus": (0.7, 0.8),
    "gamma": 1.0,
    "rho": 0.5,
    "ns_dtype": "float32",
    "precondition_frequency": 2,
    "stagger": True,
}
TURNED = 0.9  # a number for what is 0 or None unless given
COMPANY = {"dampening": "momentum"}  # switches that change nothing without another one


@dataclass(frozen=True)
class Variant:
    """One optimizer, and the hyperparameters that make it run one of its rules.

    Args:
        algorithm: the optimizer.
        switches: what differs from `COMMON` and the defaults.
    """

    algorithm: Algorithm
    switches: dict[str, Any] = field(hash=False)

    def __str__(self) -> str:
        return f"{self.algorithm.name}({self.label})" if self.switches else self.algorithm.name

    @property
    def label(self) -> str:
        """The switches in words."""
        return ", ".join(f"{name}={value}" for name, value in self.switches.items())

    @property
    def hyper(self) -> dict[str, Any]:
        """What the constructor is given.

        Raises:
            ValueError: these switches exclude each other.
        """
        declared = {hyper.name for hyper in self.algorithm.hyperparameters}
        hyper = {name: value for name, value in COMMON.items() if name in declared} | self.switches
        self.algorithm.resolve(hyper)
        return hyper

    def make(self, face: ModuleType = rlx_gpu, **options: Any) -> Any:
        """The trait of `rlx_gpu`, or of `rlx_gpu.reference`; the options may take the place of hyperparameters."""
        return getattr(face, self.algorithm.name)(**{**self.hyper, **options})

    def spec(self, ndim: int) -> Any:
        """The rule that parameters with so many dimensions run."""
        return self.algorithm.rules.select(self.algorithm.resolve(self.hyper), ndim)


def find_algorithms(names: Iterable[str]) -> list[Algorithm]:
    """The optimizers of these names, in any case; all of them if there are no names.

    Raises:
        ValueError: an unknown name.
    """
    return [TABLE[name] for name in chosen(names, TABLE, "optimizer")]


def variants(algorithm: Algorithm) -> Iterator[Variant]:
    """The optimizer with every combination of switches that it accepts, the plain one first, and with each choice."""
    turned = [(hyper.name, _turned(hyper)) for hyper in algorithm.hyperparameters if _is_switch(hyper)]
    for count in range(len(turned) + 1):
        for switches in combinations(turned, count):
            variant = Variant(algorithm, dict(switches))
            if ("matrix", False) in switches and count > 1:  # the other switches are those of the rule for matrices
                continue
            if any(COMPANY.get(name, name) not in variant.switches for name, _ in switches):
                continue
            try:
                variant.hyper  # noqa: B018  (raises if the switches exclude each other)
            except ValueError:
                continue
            yield variant
    for hyper in algorithm.hyperparameters:
        if hyper.kind == "choice" and hyper.name not in COMMON and not _is_switch(hyper):
            yield from (Variant(algorithm, {hyper.name: one}) for one in hyper.choices if one != hyper.default)


def _is_switch(hyper: Hyper) -> bool:
    """Whether it has one other value that makes another rule: of two, or a number for 0 or None, or None for an lr."""
    if hyper.name in COMMON:
        return hyper.optional
    return hyper.kind == "bool" or len(hyper.choices) == 2 or (hyper.kind == "float" and hyper.default in (None, 0.0))


def _turned(hyper: Hyper) -> Any:
    """The other value."""
    if hyper.kind == "bool":
        return not hyper.default
    if hyper.choices:
        return next(choice for choice in hyper.choices if choice != hyper.default)
    return None if hyper.name in COMMON else TURNED
