"""Reading a flat state dict back, checking all of it before any of it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from .arrays import Shape, State

METADATA = ("optimizer", "iteration", "state_dtype", "rounding", "seed")  # keys that name no parameter


def load_parameters(
    state: Mapping[str, Any],
    optimizer: str,
    *,
    init_state: Callable[[str, Shape], State],
    shapes: Mapping[str, Shape | None],
    read: Callable[[str, Any], Any] | None = None,
) -> tuple[int, dict[str, tuple[Shape | None, int, dict[str, Any]]]]:
    """The iteration, and by parameter name its shape (None if no slot tells), step count and slots.

    Args:
        state: as `Optimizer.state_dict` gives it; numbers and strings may be 0-d arrays, as NumPy's files return them.
        optimizer: whose state it must be.
        init_state: the slots that this optimizer keeps for a parameter's name and shape.
        shapes: the shapes of the parameters already known.
        read: `(key, value)` to the slot that is kept; a float64 NumPy copy unless given.

    Raises:
        ValueError: names the key that is missing, unknown or wrong.
    """
    _require(state, "optimizer")
    owner = str(np.asarray(state["optimizer"]))
    if owner != optimizer:
        raise ValueError(f"state dict: 'optimizer' is {owner}, this is {optimizer}")
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
    loaded = {
        name: (_shape(name, slots, partial(init_state, name), shapes.get(name)), _count(state, f"step/{name}"), slots)
        for name, slots in slots_by_name.items()
    }
    return _count(state, "iteration"), loaded


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
    name: str, slots: Mapping[str, Any], init_state: Callable[[Shape], State], known: Shape | None
) -> Shape | None:
    """The parameter shape that a parameter's slots belong to."""
    shapes = {slot: tuple(value.shape) for slot, value in slots.items()}
    # A matrix may have other slots than a vector: hold the names against the closer of the two, or both if equally so.
    layouts = [{*init_state(known)}] if known is not None else [{*init_state((1,) * ndim)} for ndim in (1, 2)]
    nearest = max(len(names & slots.keys()) for names in layouts)
    layouts = [names for names in layouts if len(names & slots.keys()) == nearest]
    if slots.keys() not in layouts:
        wrong = [min(names ^ slots.keys()) for names in layouts]
        faults = [f"{'unknown' if slot in slots else 'missing'} '{slot}/{name}'" for slot in dict.fromkeys(wrong)]
        raise ValueError(f"state dict: {' or '.join(faults)}")
    # A slot has the parameter's shape, or two slots are its rows and its columns.
    joined = [sum(shapes.values(), ())] if all(len(shape) == 1 for shape in shapes.values()) else []
    for shape in [known] if known is not None else [*shapes.values(), *joined]:
        expected = {slot: value.shape for slot, value in init_state(shape).items()}
        if shapes == expected:
            return shape if shapes else known
    if known is None:
        listed = ", ".join(f"'{slot}/{name}' {shape}" for slot, shape in shapes.items())
        raise ValueError(f"state dict: no parameter has slots of these shapes: {listed}")
    slot = next(slot for slot in shapes if shapes[slot] != expected[slot])
    raise ValueError(f"state dict: '{slot}/{name}' has shape {shapes[slot]}, expected {expected[slot]}")
