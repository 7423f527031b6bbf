"""Loading torch's state dicts: everything is checked and converted before the optimizer changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from .groups import settings_from
from .state import STEP, State, loaded_slot
from .torch_state import group_from_torch, slots_from_torch

if TYPE_CHECKING:
    from .optim import Optimizer

OPTIMIZER = "optimizer"  # the key of a saved group that names the algorithm; torch's checkpoints have none


def loaded_state(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Any]:
    """The groups and the state that an optimizer has after loading.

    Raises:
        ValueError: names what does not fit.
    """
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(f"state dict: missing {key!r}")
    saved_groups = state_dict["param_groups"]
    for index, saved in enumerate(saved_groups):
        owner = saved.get(OPTIMIZER, optimizer.algorithm.name)
        if owner != optimizer.algorithm.name:
            raise ValueError(
                f"state dict: param_groups[{index}] belongs to {owner}, this is {optimizer.algorithm.name}"
            )
    if len(saved_groups) != len(optimizer.param_groups):
        raise ValueError(
            f"state dict: has {len(saved_groups)} param groups, the optimizer {len(optimizer.param_groups)}"
        )
    groups: list[dict[str, Any]] = []
    state: defaultdict[Any, State] = defaultdict(dict)
    known = set()
    for index, (saved, own) in enumerate(zip(saved_groups, optimizer.param_groups, strict=True)):
        label = f"param_groups[{index}]"
        if len(saved["params"]) != len(own["params"]):
            raise ValueError(
                f"state dict: {label} has {len(saved['params'])} parameters, the optimizer's {len(own['params'])}"
            )
        torchs = OPTIMIZER not in saved
        kept = group_from_torch(optimizer.algorithm.name, saved) if torchs else saved
        group = {**own, **deepcopy({key: value for key, value in kept.items() if key not in ("params", OPTIMIZER)})}
        settings = settings_from(optimizer.algorithm, group, f"state dict: {label}")
        groups.append(group)
        names = own.get("param_names") or [f"{label}['params'][{i}]" for i in range(len(own["params"]))]
        for name, key, param in zip(names, saved["params"], own["params"], strict=True):
            known.add(key)
            if key in state_dict["state"]:
                slots = {slot: value for slot, value in state_dict["state"][key].items() if value is not None}
                found = slots_from_torch(optimizer.algorithm.name, slots, saved) if torchs else slots
                state[param] = _state(optimizer, name, found, param, settings)
    for key, value in state_dict["state"].items():
        if key not in known:  # torch keeps what it does not know
            state[key] = deepcopy(value)
    return groups, state


def _state(optimizer: Optimizer, name: str, found: Mapping[str, Any], param: torch.Tensor, settings: Any) -> State:
    """One parameter's state, converted."""
    algorithm = optimizer.algorithm
    slots = algorithm.reference.init_state(tuple(param.shape), **settings.hyper)
    if not found:
        return {}
    for slot in (STEP, *slots):
        if slot not in found:
            raise ValueError(f"state dict: parameter {name!r} lacks slot {slot!r}; it has {sorted(found)}")
    for slot in found:
        if slot != STEP and slot not in slots:
            wanted = ", ".join((STEP, *slots))
            raise ValueError(f"state dict: parameter {name!r} has slot {slot!r}, {algorithm.name} keeps {wanted}")
    return {
        slot: loaded_slot(algorithm, f"{slot}/{name}", slot, found[slot], param, settings.hyper, settings.storage)
        for slot in (STEP, *slots)
    }
