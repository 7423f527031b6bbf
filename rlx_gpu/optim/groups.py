"""Reading torch's param groups: hyperparameters, storage options, and torch's own switches."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import torch

from ..engine.batch import Settings
from ..engine.checks import refuse_wrapper
from ..engine.devices import is_live
from ..engine.state import Storage
from ..reference.hyper import COUPLED_DECAY
from ..table import Algorithm

STORAGE = ("state_dtype", "rounding", "seed")
SWITCHES = ("foreach", "fused", "capturable")  # of torch's implementations; here there is one, fused and capturable
MISTAKEN = {  # what other packages put into groups, or what belongs elsewhere
    "skip_nonfinite": "is an option of the whole optimizer",
    "max_grad_norm": "is an option of the whole optimizer, whose gradients have one norm",
    "use_muon": "write matrix=False for a group that takes the fallback",
    "use_fallback": "write matrix=False for a group that takes the fallback",
    "wd": "did you mean 'weight_decay'?",
}
MISSING = object()
PLAIN = {int, float, bool, str, tuple, type(None), object}
REFUSED = ("maximize", "differentiable", "decoupled_weight_decay")


def number(name: str, value: Any) -> Any:
    """A hyperparameter's value; one that lies in a tensor is read, on the host, but for a learning rate on a device."""
    if isinstance(value, torch.Tensor):
        refuse_wrapper(name, value)
        if name == "lr" and is_live(value):
            return id(value)
        if value.device.type != "cpu":
            raise ValueError(f"{name} must lie on the host, got a tensor on {str(value.device)!r}")
        if value.numel() != 1:
            raise ValueError(f"{name} must be one number, got {value}")
        return value.item()
    return tuple(number(name, one) for one in value) if isinstance(value, (list, tuple)) else value


def by_name(algorithm: Algorithm, positional: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters given by position, in the order of torch's constructors, and by name, as one."""
    names = [hyper.name for hyper in algorithm.hyperparameters]
    if len(positional) > len(names):
        raise TypeError(f"{algorithm.name}: takes {', '.join(names)} by position, got {len(positional)} values")
    placed = dict(zip(names, positional, strict=False))
    if twice := [name for name in placed if name in given]:
        raise TypeError(f"{algorithm.name}: got {twice[0]!r} by position and by name")
    return {**placed, **given}


def names_in(group: Mapping[str, Any], index: int) -> list[str]:
    """The names of the parameters of the index-th group: its own, or by their place."""
    numbered = [f"param_groups[{index}]['params'][{i}]" for i in range(len(group["params"]))]
    return group.get("param_names") or numbered


def check_keys(algorithm: Algorithm, group: Mapping[str, Any], defaults: Collection[str]) -> None:
    """Refuses keys of another package and misspelt ones of `defaults`; others are the caller's own, as in torch."""
    known = {*defaults, *REFUSED, *SWITCHES}
    for key in group.keys() - known - {"params"}:
        if key in MISTAKEN:
            raise TypeError(f"{algorithm.name}: {key!r} in a group: {MISTAKEN[key]}")
        close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.8)
        if close:
            raise TypeError(f"{algorithm.name}: unknown key {key!r} in a group; did you mean {close[0]!r}?")


def settings_from(algorithm: Algorithm, group: Mapping[str, Any], label: str) -> Settings:
    """A group's settings; errors are those of `Algorithm.resolve`, with the label before them."""
    without_switches(algorithm, {key: group[key] for key in REFUSED if key in group})
    try:
        names = [hyper.name for hyper in algorithm.hyperparameters if hyper.name in group]
        given = {name: number(name, group[name]) for name in names}
        live = {"lr": group["lr"]} if is_live(group.get("lr")) else {}
        storage = Storage(**{key: group[key] for key in STORAGE if key in group})
        return Settings.resolved(algorithm, {**given, **live}, storage)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}: {error}") from None


def without_switches(algorithm: Algorithm, given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters without torch's implementation switches; refuses one that asks for what is not built."""
    coupled = COUPLED_DECAY in algorithm.hyperparameters
    hypers = {hyper.name for hyper in algorithm.hyperparameters}
    refused = [switch for switch in REFUSED if switch not in hypers]
    for switch in refused:
        wanted = switch == "decoupled_weight_decay" and not coupled
        if bool(given.get(switch, wanted)) != wanted:
            raise ValueError(f"{algorithm.name}: {switch}={given[switch]!r} is not supported, must be {wanted}")
    return {key: value for key, value in given.items() if key not in (*SWITCHES, *refused)}


class CheckedGroup:
    """The settings of one group, checked whenever one of its values has changed; errors call it `label`."""

    def __init__(self, algorithm: Algorithm, label: str) -> None:
        self.algorithm, self.label = algorithm, label
        self.keys = (*(hyper.name for hyper in algorithm.hyperparameters), *STORAGE)
        self.values: list[Any] | None = None
        self.settings: Settings | None = None

    def current(self, group: Mapping[str, Any]) -> Settings:
        """The settings in force; a learning rate in a tensor on a device is known by the tensor, not by its value."""
        values: list[Any] = list(map(group.get, self.keys, repeat(MISSING)))
        inside = chain.from_iterable(value for value in values if type(value) is tuple)
        if not PLAIN.issuperset(map(type, chain(values, inside))):  # lists and tensors, whose values change in place
            values = [number(key, value) for key, value in zip(self.keys, values, strict=True)]
        if self.settings is None or values != self.values:
            self.settings = settings_from(self.algorithm, group, self.label)
            self.values = values
        return self.settings
