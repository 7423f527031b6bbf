"""Who takes part in a plan: every parameter with a gradient or a state is checked, then its state completed."""

from __future__ import annotations

from typing import Any

import torch

from ..table import Algorithm
from .batch import Batch
from .buckets import grouped
from .checks import check_grad, check_param, check_state
from .state import Layout, State, home_scalars, layout


def admit(algorithm: Algorithm, batch: Batch) -> dict[int, Layout]:
    """What the states of the entries that take part are like, by place; raises as `checks` before anything changes."""
    members = [i for i, state in enumerate(batch.states) if state or batch.grads[i] is not None]
    known: dict[Any, Layout] = {}
    layouts = {i: _checked(algorithm, batch, i, known) for i in members}
    states: dict[int, State] = {i: batch.states[i] for i in members}  # type: ignore[misc]
    starts = _starts(algorithm, batch, layouts)
    for i, wanted in layouts.items():
        entry, grad = batch.entries[i], batch.grads[i]
        missing = {key: like for key, like in wanted.tensors.items() if key not in states[i]}
        states[i].update({key: torch.zeros_like(like, device=entry.param.device) for key, like in missing.items()})
        entry.grad_dtype = entry.grad_dtype if grad is None else grad.dtype
    for device, here in grouped(members, lambda i: batch.entries[i].param.device).items():
        for slot in dict.fromkeys(slot for i in here for slot in layouts[i].scalars):
            holders = [i for i in here if slot in layouts[i].scalars]
            initial = [starts.get((i, slot), layouts[i].scalars[slot]) for i in holders]
            home_scalars([states[i] for i in holders], slot, initial, device)
    return layouts


def _checked(algorithm: Algorithm, batch: Batch, i: int, known: dict[Any, Layout]) -> Layout:
    """Refuses what does not fit; returns what the state should be."""
    entry, grad, state = batch.entries[i], batch.grads[i], batch.states[i]
    check_param(entry.name, entry.param)
    if grad is not None:
        check_grad(entry.name, entry.param, grad)
    param, settings = entry.param, batch.settings[entry.group]
    key = entry.group, param.shape, param.stride(), param.dtype, param.device
    if key not in known:
        known[key] = layout(algorithm, settings.hyper, param, settings.storage)
    if state:
        check_state(entry, state, known[key])
    if algorithm.of_matrices:
        algorithm.matrix_bucket.check(algorithm.select(settings.hyper, param.ndim), entry, settings.hyper)
    return known[key]


def _starts(algorithm: Algorithm, batch: Batch, layouts: dict[int, Layout]) -> dict[tuple[int, str], float]:
    """Where slots of one number begin that begin apart among matrices of one shape, by their rule."""
    kinds: dict[Any, list[int]] = {}
    for i in layouts:
        entry = batch.entries[i]
        starts = algorithm.select(batch.settings[entry.group].hyper, entry.param.ndim).starts
        for slot, start in starts.items():
            kinds.setdefault((slot, start, entry.group, entry.param.shape), []).append(i)
    return {
        (i, slot): start(batch.settings[group].hyper, place, len(members))
        for (slot, start, group, _), members in kinds.items()
        for place, i in enumerate(members)
    }
