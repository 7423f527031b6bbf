"""Buckets: parameters that share device, rule and storage, and step in one go."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from ..kernels.spec import FactoredSpec, MatrixSpec, RuleSpec
from .batch import Entry, Scaling, Settings
from .state import DTYPE_NAMES, Layout, State, buffers

Spec = RuleSpec | FactoredSpec | MatrixSpec
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class BucketKey:
    """What parameters must share to be stepped together: `formats` name the codecs of parameter, gradient and slots;
    matrices share their param group as well.
    """

    device: torch.device
    spec: Spec
    formats: tuple[str, ...]
    group: int | None = None


@dataclass(frozen=True, eq=False)
class BucketMember:
    """One parameter of a bucket: `index` is its place in the plan, `place` the one among the members of its device.

    `grad_dtype` is what its gradient's dtype is taken to be when this is made. A bucket may move the state elsewhere
    when it is made, and then updates `state`.
    """

    index: int
    place: int
    entry: Entry
    state: State
    settings: Settings
    grad_dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grad_dtype", self.entry.grad_kind)


class Step(NamedTuple):
    """What the host knows of one step; `grads` and the flags `present` are by place in the plan. What a `captured` one
    reads has to stay.
    """

    grads: Sequence[torch.Tensor | None]
    present: np.ndarray[Any, Any]
    settings: Sequence[Settings]
    scaling: Scaling
    captured: bool = False


class Bucket(Protocol):
    """Parameters stepped together; `waits` if the host must know before that the step is not skipped."""

    waits: bool

    def make_tables(self, step: Step) -> None:
        """All that has to be made for such a step and may fail, before anything is changed."""

    def forget_captures(self) -> None:
        """Lets go of what captured steps alone read."""

    def step(self, step: Step) -> None:
        """All that a step does, once the rows have been computed."""


def bucket_key(spec: Spec, entry: Entry, settings: Settings, layout: Layout) -> BucketKey:
    """The bucket of one parameter under a rule, with a state of this layout."""
    group = entry.group if isinstance(spec, MatrixSpec) else None
    slots = (layout.slots[slot] for slot in spec.slots)
    formats = settings.storage.param_format(entry.param), DTYPE_NAMES[entry.grad_kind], *slots
    return BucketKey(entry.param.device, spec, formats, group)


def addresses(key: BucketKey, members: Sequence[BucketMember]) -> np.ndarray[Any, Any]:
    """int64 [members, buffers]: the addresses of all buffers of all streams; 0, an offset, for the gradient's."""
    slots = zip(key.spec.slots, key.formats[2:], strict=True)
    names = [slot + buffer.suffix for slot, format in slots for buffer in buffers(format)]
    rows = [[one.entry.param.data_ptr(), 0, *(one.state[name].data_ptr() for name in names)] for one in members]
    return np.array(rows, dtype=np.int64)


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by what they have in common."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
