"""Every optimizer in every way of running it; one that joins the registry is here without a line of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations
from types import ModuleType
from typing import Any

import rlx_gpu

from ..naming import chosen
from ..reference.hyper import REQUIRED, UNSET, Hyper
from ..table import TABLE, Algorithm


@dataclass(frozen=True)
class Variant:
    """One optimizer, and what differs from the values in trials that are declared, and from the defaults."""

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
        """What the constructor is given; ValueError if the switches exclude each other."""
        declared = {hyper.name: hyper.trial for hyper in self.algorithm.hyperparameters if hyper.trial is not UNSET}
        hyper = declared | self.switches
        self.algorithm.resolve(hyper)
        return hyper

    def make(self, face: ModuleType = rlx_gpu, **options: Any) -> Any:
        """The trait of `rlx_gpu`, or of `rlx_gpu.reference`; the options may take the place of hyperparameters."""
        return getattr(face, self.algorithm.name)(**{**self.hyper, **options})

    def spec(self, ndim: int) -> Any:
        """The rule that parameters with so many dimensions run."""
        return self.algorithm.select(self.algorithm.resolve(self.hyper), ndim)

    def check_slots(self, shape: tuple[int, ...]) -> None:
        """Refuse a rule that keeps other slots for a parameter than the reference, numbers of the host apart."""
        spec, reference = self.spec(len(shape)), self.algorithm.reference
        state = reference.init_state(shape, **self.algorithm.resolve(self.hyper))
        host = {*self.algorithm.scalar_slots}
        if differing := alone(f"rule {spec.name!r}", {*spec.slots} - host, "the reference", state.keys() - host):
            raise ValueError(f"{self}, shape {shape}: slots differ; {differing}")


def alone(first: str, firsts: Iterable[str], second: str, seconds: Iterable[str]) -> str:
    """What only one of two sides has, side by side; nothing if they have the same."""
    firsts, seconds = set(firsts), set(seconds)
    sides = ((first, firsts - seconds), (second, seconds - firsts))
    return ", ".join(f"{side} alone has {', '.join(sorted(names))}" for side, names in sides if names)


def find_algorithms(names: Iterable[str]) -> list[Algorithm]:
    """The optimizers of these names, in any case; all of them if there are no names."""
    return [TABLE[name] for name in chosen(names, TABLE, "optimizer")]


def variants(algorithm: Algorithm) -> Iterator[Variant]:
    """The optimizer with every combination of switches that it accepts, the plain one first, and with each choice.

    Raises:
        ValueError: a hyperparameter's declaration leaves trials without a value that would show whether it works.
    """
    check_declarations(algorithm)
    turned = [hyper for hyper in algorithm.hyperparameters if other_value(hyper) is not UNSET]
    for hypers in chain.from_iterable(combinations(turned, count) for count in range(len(turned) + 1)):
        variant = Variant(algorithm, {hyper.name: other_value(hyper) for hyper in hypers})
        if variant.switches.get("matrix") is False and len(hypers) > 1:  # the others are those of the rule for matrices
            continue
        if any(hyper.needs is not None and hyper.needs not in variant.switches for hyper in hypers):
            continue
        try:
            variant.hyper  # noqa: B018  (raises if the switches exclude each other)
        except ValueError:
            if not hypers:
                raise
            continue
        yield variant
    for hyper in algorithm.hyperparameters:
        if hyper.kind == "choice" and hyper.trial is UNSET and other_value(hyper) is UNSET:
            yield from (Variant(algorithm, {hyper.name: one}) for one in hyper.choices if one != hyper.default)


def other_value(hyper: Hyper) -> Any:
    """The value beside the one of all trials that makes variants of its own; UNSET if there is none."""
    if hyper.switch is not UNSET:
        return hyper.switch
    if hyper.optional and (hyper.default, hyper.trial) != (None, UNSET):
        return None
    if hyper.kind == "bool" and hyper.trial is UNSET:
        return not hyper.default
    if len(hyper.choices) == 2 and hyper.trial is UNSET:
        return next(choice for choice in hyper.choices if choice != hyper.default)
    return UNSET


def check_declarations(algorithm: Algorithm) -> None:
    """Refuse a hyperparameter that no trial would show to work, and declared values that it does not allow."""
    names = [hyper.name for hyper in algorithm.hyperparameters]
    for hyper in algorithm.hyperparameters:
        declared = [value for value in (hyper.trial, hyper.switch) if value is not UNSET]
        numbers = hyper.default if hyper.kind == "floats" else (hyper.default,)
        numeric = hyper.kind in ("float", "floats", "steps", "int")
        # Without a default, or with a number that takes a term out of the update.
        if numeric and any(value in (REQUIRED, None, 0) for value in numbers) and not declared:
            default = "required" if hyper.default is REQUIRED else f"{hyper.default} by default"
            raise ValueError(
                f"{algorithm.name}: {hyper.name} is {default}, so that no trial would show whether it works; declare"
                " its value in all trials, trial=..., or a second one for variants of their own, switch=..."
            )
        if hyper.needs not in (None, *names):
            raise ValueError(f"{algorithm.name}: {hyper.name} needs {hyper.needs!r}; there are {', '.join(names)}")
        for value in declared:
            try:
                hyper.check(value)
            except ValueError as error:
                raise ValueError(f"{algorithm.name}: in trials, {error}") from None
