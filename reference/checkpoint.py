"""Reading a flat state dict back, checking all of it before any of it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from .arrays import Shape

METADATA = ("optimizer", "revision", "iteration", "state_dtype", "rounding", "seed")  # keys that name no parameter
FIRST = 1, ""  # revision of a rule, and what the one before it had
RETIRED_ERROR = 1e-6  # of a number in a retired slot, which was a sum over all steps


def load_parameters(
    state: Mapping[str, Any],
    optimizer: str,
    *,
    init_state: Callable[[str, Shape], Mapping[str, Any]],
    shapes: Mapping[str, Shape | None],
    read: Callable[[str, Any], Any] | None = None,
    retired: Callable[[int], Mapping[str, float]] | None = None,
    revision: tuple[int, str] = FIRST,
) -> tuple[int, dict[str, tuple[Shape | None, int, dict[str, Any]]]]:
    """The iteration, and by parameter name its shape (None if no slot tells), step count and slots.

    Args:
        state: as `Optimizer.state_dict` gives it; numbers and strings may be 0-d arrays, as NumPy's files return them.
        optimizer: whose state it must be.
        init_state: what this optimizer keeps for a parameter's name and shape, of which shapes alone are read.
        shapes: the shapes of the parameters already known.
        read: `(key, value)` to the slot that is kept; a float64 NumPy copy unless given.
        retired: the step count to the numbers in slots that are no longer kept; older states may hold them.
        revision: of the optimizer's rule, and what the one before it had; a state of another is refused.

    Raises:
        ValueError: names the key that is missing, unknown or wrong.
    """
    _require(state, "optimizer")
    owner = str(np.asarray(state["optimizer"]))
    if owner != optimizer:
        raise ValueError(f"state dict: 'optimizer' is {owner}, this is {optimizer}")
    check_revision(state, revision, optimizer, "state dict")
    slots_by_name: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        if key in METADATA:
            continue
        slot, slash, name = key.partition("/")
        if not slash:
            raise ValueError(f"state dict: unknown key {key!r}")
        slots = slots_by_name.setdefault(name, {})
        if slot != "step":
            slots[slot] = (read or _array)(key, value)
    if retired:
        for name, slots in slots_by_name.items():
            step = _count(state, f"step/{name}")
            slots_by_name[name] = without_retired(slots, name, step, retired(step))
    loaded = {
        name: (_shape(name, slots, partial(init_state, name), shapes.get(name)), _count(state, f"step/{name}"), slots)
        for name, slots in slots_by_name.items()
    }
    return _count(state, "iteration"), loaded


def signed(optimizer: str, revision: tuple[int, str]) -> dict[str, Any]:
    """What a state says of whose it is; the first revision of a rule goes without saying."""
    return {"optimizer": optimizer, **({} if revision[0] == 1 else {"revision": revision[0]})}


def check_revision(saved: Mapping[str, Any], revision: tuple[int, str], optimizer: str, label: str) -> None:
    """Refuse what another revision of an optimizer's rule has saved, by a ValueError."""
    current, before = revision
    found = saved.get("revision", 1)
    if np.asarray(found).tolist() != current:
        raise ValueError(
            f"{label}: is of revision {found} of {optimizer}'s rule, this is revision {current}; the one before it had "
            f"{before}. To go on with the new rule, set 'revision' there to {current}"
        )


def without_retired(slots: Mapping[str, Any], name: str, step: int, retired: Mapping[str, float]) -> dict[str, Any]:
    """One parameter's slots but for the retired ones, which have to be what its step count makes of them.

    Args:
        slots: arrays or tensors. An empty parameter's retired ones may be anything: not every path counted its steps.
        name: the parameter's.
        step: its step count.
        retired: the number that each retired slot held after so many steps.

    Raises:
        ValueError: names the slot that holds another number, and both numbers.
    """
    if not any(0 in value.shape for value in slots.values()):
        for slot in sorted(retired.keys() & slots.keys()):
            try:
                found = float(slots[slot])
            except (TypeError, RuntimeError):
                raise ValueError(f"state dict: '{slot}/{name}' must be one number, got {slots[slot]!r}") from None
            if not abs(found - retired[slot]) <= RETIRED_ERROR:
                raise ValueError(
                    f"state dict: '{slot}/{name}' is {found:.10g}, at step {step} it must be {retired[slot]:.10g}"
                )
    return {slot: value for slot, value in slots.items() if slot not in retired}


def _require(state: Mapping[str, Any], key: str) -> None:
    """Refuse a state dict without this key."""
    if key not in state:
        raise ValueError(f"state dict: missing {key!r}")


def _count(state: Mapping[str, Any], key: str) -> int:
    """The integer from 0 under a key."""
    _require(state, key)
    value = np.asarray(state[key])
    if value.ndim or value.dtype.kind not in "iu" or value < 0:
        raise ValueError(f"state dict: {key!r} must be an integer from 0, got {state[key]!r}")
    return int(value)


def _array(key: str, value: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A float64 copy of the array under a key."""
    try:
        return np.array(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"state dict: {key!r} must be an array of numbers, got {type(value).__name__}") from None


def _shape(
    name: str, slots: Mapping[str, Any], init_state: Callable[[Shape], Mapping[str, Any]], known: Shape | None
) -> Shape | None:
    """The parameter shape that a parameter's slots belong to."""
    shapes = {slot: tuple(value.shape) for slot, value in slots.items()}
    # A slot has the parameter's shape, or two slots are its rows and its columns.
    joined = [sum(shapes.values(), ())] if all(len(shape) == 1 for shape in shapes.values()) else []
    states: list[dict[str, Shape]] = []
    for shape in [known] if known is not None else dict.fromkeys((*shapes.values(), *joined)):
        expected = {slot: tuple(value.shape) for slot, value in init_state(shape).items()}
        if shapes == expected:
            return shape if shapes else known
        states.append(expected)
    # A matrix may have other slots than a vector: hold the names against the closest state, or all that are as close.
    layouts = [{*init_state((1,) * ndim)} for ndim in (() if known is not None else (1, 2))]
    layouts += [{*state} for state in states]
    nearest = max(len(names & slots.keys()) for names in layouts)
    layouts = [names for names in layouts if len(names & slots.keys()) == nearest]
    if slots.keys() not in layouts:
        wrong = [min(names ^ slots.keys()) for names in layouts]
        faults = [f"{'unknown' if slot in slots else 'missing'} '{slot}/{name}'" for slot in dict.fromkeys(wrong)]
        raise ValueError(f"state dict: {' or '.join(faults)}")
    if known is None:
        listed = ", ".join(f"'{slot}/{name}' {shape}" for slot, shape in shapes.items())
        raise ValueError(f"state dict: no parameter has slots of these shapes: {listed}")
    slot = next(slot for slot in shapes if shapes[slot] != expected[slot])
    raise ValueError(f"state dict: '{slot}/{name}' has shape {shapes[slot]}, expected {expected[slot]}")
