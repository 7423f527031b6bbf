"""Loading torch's state dicts: everything is checked and converted before the optimizer changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch

from ..engine.state import (
    STEP,
    State,
    as_tensor,
    check_steps,
    layout,
    loaded_slot,
    place_scalars,
    read_scalars,
)
from ..reference.checkpoint import check_revision, without_retired
from ..table import Algorithm
from .groups import names_in, settings_from
from .torch_state import group_from_torch, slots_from_torch

# The keys of a saved group that name the algorithm and the revision of its rule; torch's checkpoints have none.
OPTIMIZER, REVISION = "optimizer", "revision"


def loaded_state(
    algorithm: Algorithm, own_groups: Sequence[Mapping[str, Any]], state_dict: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], Any]:
    """The groups and the state that an optimizer with these groups has after loading; a ValueError names misfits."""
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(f"state dict: missing {key!r}")
    saved_groups = state_dict["param_groups"]
    for index, saved in enumerate(saved_groups):
        owner = saved.get(OPTIMIZER, algorithm.name)
        if owner != algorithm.name:
            raise ValueError(f"state dict: param_groups[{index}] belongs to {owner}, this is {algorithm.name}")
        if OPTIMIZER in saved:
            check_revision(saved, algorithm.revision, owner, f"state dict: param_groups[{index}]")
    if len(saved_groups) != len(own_groups):
        raise ValueError(f"state dict: has {len(saved_groups)} param groups, the optimizer {len(own_groups)}")
    groups: list[dict[str, Any]] = []
    state: defaultdict[Any, State] = defaultdict(dict)
    known, names = set(), {}
    for index, (saved, own) in enumerate(zip(saved_groups, own_groups, strict=True)):
        label, found, count = f"param_groups[{index}]", len(saved["params"]), len(own["params"])
        if found != count:
            raise ValueError(f"state dict: {label} has {found} parameters, the optimizer's {count}")
        if len(saved.get("param_names") or saved["params"]) != found:
            raise ValueError(f"state dict: {label} names {len(saved['param_names'])} of its {found} parameters")
        torchs = OPTIMIZER not in saved
        kept = group_from_torch(algorithm.name, saved) if torchs else saved
        group = {
            **own,
            **deepcopy({key: value for key, value in kept.items() if key not in ("params", OPTIMIZER, REVISION)}),
        }
        settings = settings_from(algorithm, group, f"state dict: {label}")
        groups.append(group)
        for name, key, param in zip(names_in(own, index), saved["params"], own["params"], strict=True):
            known.add(key)
            slots = {slot: value for slot, value in state_dict["state"].get(key, {}).items() if value is not None}
            if slots:
                names[param] = name
                slots = slots_from_torch(algorithm.name, slots, saved) if torchs else slots
                state[param] = _state(algorithm, name, slots, param, settings)
            elif key in state_dict["state"]:
                state[param] = {}
    _bring_home(algorithm, names, state)
    for key, value in state_dict["state"].items():
        if key not in known:  # torch keeps what it does not know
            state[key] = deepcopy(value)
    return groups, state


def into_place(
    state: dict[Any, Any], held: Mapping[Any, State], captured: Collection[int]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What to copy over what, so that states, by id, that captured steps read hold what was loaded, where they lie.

    Puts them in the place of those loaded; a ValueError names what does not fit.
    """
    copies = []
    for param, own in held.items():
        if id(own) not in captured:
            continue
        loaded = state.get(param, {})
        for slot in {**own, **loaded}:
            kinds = [_kind(one.get(slot)) for one in (own, loaded)]
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"state dict: slot {slot!r} of a parameter of shape {tuple(param.shape)} is {kinds[1]}, but "
                    f"captured steps read it as {kinds[0]}; load after forget_captures()"
                )
        copies += [(own[slot], loaded[slot]) for slot in own]
        state[param] = own
    return copies


def _kind(value: Any) -> str:
    """What a slot is like, in words."""
    if not isinstance(value, torch.Tensor):
        return "missing" if value is None else type(value).__name__
    return f"{value.dtype} {tuple(value.shape)} of strides {value.stride()} on {value.device}"


def _state(algorithm: Algorithm, name: str, found: Mapping[str, Any], param: torch.Tensor, settings: Any) -> State:
    """One parameter's state, converted; its numbers are left as they are."""
    retired = getattr(algorithm.reference, "retired_slots", None)
    if retired is not None and STEP in found:
        count = as_tensor(f"{STEP}/{name}", found[STEP])
        check_steps([f"{STEP}/{name}"], [count])
        step = int(count)
        found = without_retired(found, name, step, retired(step))
    wanted = layout(algorithm, settings.hyper, param, settings.storage)
    keys = (*wanted.scalars, *wanted.tensors)
    for slot in (*keys, *found):
        if slot not in found:
            raise ValueError(f"state dict: parameter {name!r} lacks slot {slot!r}; it has {sorted(found)}")
        if slot not in keys:
            listed = ", ".join(keys)
            raise ValueError(f"state dict: parameter {name!r} has slot {slot!r}, {algorithm.name} keeps {listed}")
    numbers = {slot: as_tensor(f"{slot}/{name}", found[slot]) for slot in wanted.scalars}
    for slot, number in numbers.items():
        if slot != STEP and number.numel() != 1:
            raise ValueError(f"state dict: '{slot}/{name}' has shape {tuple(number.shape)}, expected ()")
    tensors = {key: loaded_slot(f"{key}/{name}", found[key], like, param) for key, like in wanted.tensors.items()}
    return {**numbers, **tensors}


def _bring_home(algorithm: Algorithm, names: Mapping[torch.Tensor, str], state: Mapping[torch.Tensor, State]) -> None:
    """Checks the step counts, and brings these and other numbers to the parameters, all of a device at once."""
    check_steps([f"{STEP}/{name}" for name in names.values()], [state[param][STEP] for param in names])
    kinds: dict[tuple[torch.device, str], list[State]] = {}
    for param in names:
        for slot in {STEP, *algorithm.scalar_slots} & state[param].keys():
            kinds.setdefault((param.device, slot), []).append(state[param])
    for (device, slot), states in kinds.items():
        place_scalars(states, slot, read_scalars([one[slot] for one in states]).tolist(), device)
