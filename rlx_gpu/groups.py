"""Reading torch's param groups: hyperparameters, storage options, and torch's own switches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .batch import Settings
from .state import Storage
from .table import Algorithm

STORAGE = ("state_dtype", "rounding", "seed")
IGNORED = ("foreach", "fused")  # torch's choice of implementation; here there is one, and it is fused
REFUSED = ("maximize", "capturable", "differentiable", "decoupled_weight_decay")


def number(value: Any) -> Any:
    """A hyperparameter's value; one that lies in a tensor is read, on the host."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"a hyperparameter must lie on the host, got a tensor on {str(value.device)!r}")
        return value.item()
    return value


def settings_from(algorithm: Algorithm, group: Mapping[str, Any], label: str) -> Settings:
    """A group's settings.

    Raises:
        TypeError, ValueError: as `Algorithm.resolve`, with the group's name before it.
    """
    given = {hyper.name: number(group[hyper.name]) for hyper in algorithm.hyperparameters if hyper.name in group}
    without_switches(algorithm.name, {key: group[key] for key in REFUSED if key in group})
    try:
        hyper = algorithm.resolve(given)
        return Settings(hyper, Storage(**{key: group[key] for key in STORAGE if key in group}))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}: {error}") from None


def without_switches(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters without torch's implementation switches.

    Raises:
        ValueError: a switch that asks for what is not built.
    """
    for switch in REFUSED:
        decoupled = switch == "decoupled_weight_decay" and name.endswith("W")
        if given.get(switch) and not decoupled:
            raise ValueError(f"{name}: {switch}={given[switch]!r} is not supported, must be False")
    return {key: value for key, value in given.items() if key not in (*IGNORED, *REFUSED)}


def group_values(algorithm: Algorithm, group: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What of a group decides its settings, to tell whether it has changed."""
    keys = (*(hyper.name for hyper in algorithm.hyperparameters), *STORAGE)
    return [(key, number(group[key])) for key in keys if key in group]
