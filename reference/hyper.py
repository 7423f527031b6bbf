"""How an optimizer declares its hyperparameters: name, default, range and meaning, once, for every face of it."""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

UNSET: Any = inspect.Parameter.empty  # so that a default reads the same in a declaration and in a signature
REQUIRED: Any = UNSET


@dataclass(frozen=True)
class Hyper:
    """One hyperparameter.

    Args:
        name: as in the constructor.
        default: REQUIRED if the caller must give it.
        interval: the allowed values in mathematical notation, "[0, 1)"; of each element, where there are several.
        kind: "float", "floats" (a tuple of as many as the default has), "steps" (a whole number that the rule computes
            with), "int" (one that decides what runs), "bool", "choice" (one of `choices`), "sizes" (a tuple of whole
            numbers) or "coefficients" (one of `choices`, or a tuple of triples of floats).
        optional: whether None is allowed.
        choices: the names allowed.
        doc: one line of meaning.
        trial: the value in trials, chosen so that it matters within a few steps; the default unless given.
        switch: a second value, for variants of their own. A bool, two choices, and whatever may be None have one
            without saying so, unless `trial` settles a bool or a choice.
        needs: the hyperparameter that has to be switched as well for this one's switch to change anything.

    Raises:
        ValueError: kind "floats" without a default that fixes how many.
    """

    name: str
    default: Any = REQUIRED
    interval: str = "[0, inf)"
    kind: Literal["float", "floats", "steps", "int", "bool", "choice", "sizes", "coefficients"] = "float"
    optional: bool = False
    choices: tuple[str, ...] = ()
    doc: str = ""
    trial: Any = UNSET
    switch: Any = UNSET
    needs: str | None = None

    def __post_init__(self) -> None:
        if self.kind == "floats" and self._count < 2:
            raise ValueError(f"{self.name}: kind 'floats' needs a tuple of two or more numbers as its default")

    @property
    def _count(self) -> int:
        """How many numbers the default has."""
        return len(self.default) if isinstance(self.default, tuple) else 1

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        choice = f"one of {', '.join(self.choices)}"
        count = "a pair of" if self._count == 2 else str(self._count)
        words = {
            "float": f"a number in {self.interval}",
            "floats": f"{count} numbers in {self.interval}",
            "steps": f"a whole number in {self.interval}",
            "int": f"a whole number in {self.interval}",
            "bool": "True or False",
            "choice": choice,
            "sizes": f"a tuple of whole numbers in {self.interval}",
            "coefficients": f"{choice}, or a list of triples of numbers in {self.interval}",
        }
        return words[self.kind] + (" or None" if self.optional else "")

    @property
    def structural(self) -> bool:
        """Whether the value decides which rule runs on which buffers, rather than being a number in the rule."""
        return self.kind not in ("float", "floats", "steps")

    def with_default(self, default: Any) -> Hyper:
        """The same hyperparameter with another default."""
        return replace(self, default=default)

    def check(self, value: Any) -> Any:
        """The value as its kind has it, hashable: a number, a name, a bool, a tuple of those, or None.

        Raises:
            ValueError: another kind of value, or one out of range; names the hyperparameter, the value and the range.
        """
        if value is None and self.optional:
            return None
        several = isinstance(value, (tuple, list))
        if self.kind == "bool" and isinstance(value, (bool, np.bool_)):
            return bool(value)
        if self.kind == "float":
            return self._number(self.name, value)
        if self.kind in ("int", "steps"):
            return self._whole(self.name, value)
        if self.kind in ("choice", "coefficients") and isinstance(value, str) and value in self.choices:
            return value
        if self.kind == "floats" and several and len(value) == self._count:
            return tuple(self._number(f"{self.name}[{i}]", element) for i, element in enumerate(value))
        if self.kind == "sizes" and several and len(value):
            return tuple(self._whole(f"{self.name}[{i}]", element) for i, element in enumerate(value))
        if self.kind == "coefficients" and several and len(value):
            return tuple(self._triple(f"{self.name}[{i}]", element) for i, element in enumerate(value))
        raise ValueError(f"{self.name} must be {self.allowed}, got {value!r}")

    def _number(self, label: str, value: Any) -> float:
        """The value as a float inside the interval; `label` is what an error calls it."""
        wanted = f"in {self.interval}" + (" or None" if self.optional else "")
        # bool has __float__ and str has not; an array of one element converts, but is no scalar.
        if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__float__") or np.ndim(value):
            raise ValueError(f"{label} must be a number {wanted}, got {value!r}")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{label} must be a number {wanted}, got {value!r}") from None
        if not _contains(self.interval, number):
            raise ValueError(f"{label} must be {wanted}, got {number!r}")
        return number

    def _whole(self, label: str, value: Any) -> int:
        """The value as an int inside the interval; a float is none, however whole."""
        try:
            number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
        except TypeError:
            number = None
        if number is None or not _contains(self.interval, number):
            optional = " or None" if self.optional and self.kind != "sizes" else ""
            raise ValueError(f"{label} must be a whole number in {self.interval}{optional}, got {value!r}")
        return number

    def _triple(self, label: str, value: Any) -> tuple[float, ...]:
        """The value as three floats inside the interval."""
        if not isinstance(value, (tuple, list)) or len(value) != 3:
            raise ValueError(f"{label} must be a triple of numbers in {self.interval}, got {value!r}")
        return tuple(self._number(f"{label}[{i}]", element) for i, element in enumerate(value))


def _contains(interval: str, x: float) -> bool:
    """Whether x lies in an interval such as "[0, 1)"; NaN lies in none."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    return (low <= x if interval[0] == "[" else low < x) and (x <= high if interval[-1] == "]" else x < high)


def resolve(hyperparameters: Iterable[Hyper], given: Mapping[str, Any], optimizer: str) -> dict[str, Any]:
    """Every hyperparameter of an optimizer, checked: the given ones and the others' defaults, in declared order.

    Raises:
        TypeError: an unknown hyperparameter, or a required one missing.
        ValueError: a value that `Hyper.check` refuses.
    """
    known = {hyper.name: hyper for hyper in hyperparameters}
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise TypeError(f"{optimizer}: unknown hyperparameter {name!r}{hint}; it takes {', '.join(known)}")
    values = {name: given.get(name, hyper.default) for name, hyper in known.items()}
    missing = [name for name, value in values.items() if value is REQUIRED]
    if missing:
        raise TypeError(f"{optimizer}: missing required hyperparameter {', '.join(map(repr, missing))}")
    try:
        return {name: known[name].check(value) for name, value in values.items()}
    except ValueError as error:
        raise ValueError(f"{optimizer}: {error}") from None


def scaled(hyper: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The hyperparameters of a parameter with this `lr_scale`; without an lr the rule applies the scale itself."""
    if hyper["lr"] is None:
        return {**hyper, "lr_scale": scale}
    return {**hyper, "lr": hyper["lr"] * scale}


LR = Hyper("lr", 1e-3, doc="learning rate", trial=0.1)  # large: the update is nearly as large as the parameter
BETAS = Hyper(
    "betas",
    (0.9, 0.999),
    "[0, 1)",
    "floats",
    doc="decay rates of the first and the second moment",
    trial=(0.9, 0.95),  # so short a memory takes RAdam past its first branch, and makes AMSGrad's maximum matter
)
EPS = Hyper("eps", 1e-8, doc="added to the denominator")
COUPLED_DECAY = Hyper("weight_decay", 0.0, doc="coupled: the gradient becomes grad + weight_decay * param", trial=0.1)
DECOUPLED_DECAY = Hyper(
    "weight_decay", 0.01, doc="decoupled: the parameter shrinks by lr * weight_decay of itself", trial=0.1
)
AMSGRAD = Hyper("amsgrad", False, kind="bool", doc="divide by the largest second moment so far")
