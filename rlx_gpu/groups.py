"""Reading torch's param groups: hyperparameters, storage options, and torch's own switches."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

import torch

from .batch import Settings
from .reference.hyper import COUPLED_DECAY
from .state import Storage
from .table import Algorithm

STORAGE = ("state_dtype", "rounding", "seed")
IGNORED = ("foreach", "fused")  # torch's choice of implementation; here there is one, and it is fused
MISTAKEN = {  # what other packages put into groups, or what belongs elsewhere
    "skip_nonfinite": "is an option of the whole optimizer",
    "use_muon": "write matrix=False for a group that takes the fallback",
    "use_fallback": "write matrix=False for a group that takes the fallback",
    "wd": "did you mean 'weight_decay'?",
}
REFUSED = ("maximize", "capturable", "differentiable", "decoupled_weight_decay")


def number(name: str, value: Any) -> Any:
    """A hyperparameter's value; one that lies in a tensor is read, on the host."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"{name} must lie on the host, got a tensor on {str(value.device)!r}")
        return value.item()
    return value


def check_keys(algorithm: Algorithm, group: Mapping[str, Any], defaults: Collection[str]) -> None:
    """Refuses keys of a group that look like options and are none; others are the caller's own, as in torch.

    Raises:
        TypeError: a key of another package, or a misspelt one of `defaults`.
    """
    known = {*defaults, *REFUSED, *IGNORED}
    for key in group.keys() - known - {"params"}:
        if key in MISTAKEN:
            raise TypeError(f"{algorithm.name}: {key!r} in a group: {MISTAKEN[key]}")
        close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.8)
        if close:
            raise TypeError(f"{algorithm.name}: unknown key {key!r} in a group; did you mean {close[0]!r}?")


def settings_from(algorithm: Algorithm, group: Mapping[str, Any], label: str) -> Settings:
    """A group's settings.

    Raises:
        TypeError, ValueError: as `Algorithm.resolve`, with the group's name before it.
    """
    without_switches(algorithm, {key: group[key] for key in REFUSED if key in group})
    try:
        names = [hyper.name for hyper in algorithm.hyperparameters if hyper.name in group]
        given = {name: number(name, group[name]) for name in names}
        hyper = algorithm.resolve(given)
        return Settings(hyper, Storage(**{key: group[key] for key in STORAGE if key in group}))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}: {error}") from None


def without_switches(algorithm: Algorithm, given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters without torch's implementation switches.

    Raises:
        ValueError: a switch that asks for what is not built.
    """
    coupled = COUPLED_DECAY in algorithm.hyperparameters
    for switch in REFUSED:
        wanted = switch == "decoupled_weight_decay" and not coupled
        if bool(given.get(switch, wanted)) != wanted:
            raise ValueError(f"{algorithm.name}: {switch}={given[switch]!r} is not supported, must be {wanted}")
    return {key: value for key, value in given.items() if key not in (*IGNORED, *REFUSED)}


def group_values(algorithm: Algorithm, group: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What of a group decides its settings, to tell whether it has changed."""
    keys = (*(hyper.name for hyper in algorithm.hyperparameters), *STORAGE)
    return [(key, number(key, group[key])) for key in keys if key in group]
