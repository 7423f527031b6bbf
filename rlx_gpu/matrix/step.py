"""What a routine is told of a step of a batch of matrices."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..engine.buckets import grouped
from ..kernels.spec import RuleSpec

Selection = slice | torch.Tensor  # a batch indexed with it: a view, or a copy to be written back
RunRule = Callable[[RuleSpec, torch.Tensor, Sequence[torch.Tensor]], None]


@dataclass(frozen=True)
class MatrixStep:
    """One step of a batch of B matrices.

    Args:
        hyper: the hyperparameters of their param group.
        columns: by name, numbers of the matrices' rows, float32 [B] on the device.
        steps, counters: t of each matrix, from 1, and other numbers by slot; of scheduled rules only.
        device: where index tensors go.
        run: runs an elementwise rule that does not read its gradient over the batch that stands in the parameter's
            place and those of its slots, of equal memory order within a matrix.
    """

    hyper: Mapping[str, Any]
    columns: Callable[[str], torch.Tensor]
    steps: tuple[int, ...] = ()
    counters: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    run: RunRule | None = None

    def groups(self, values: Sequence[Hashable]) -> list[tuple[Hashable, Selection]]:
        """The values that occur, each with the matrices that have it."""
        members = grouped(range(len(values)), values.__getitem__)
        return [(value, selection(own, self.device)) for value, own in members.items()]


def selection(members: Sequence[int], device: torch.device) -> Selection:
    """These places: a slice where they lie side by side."""
    first, last = members[0], members[-1]
    if list(members) == list(range(first, last + 1)):
        return slice(first, last + 1)
    index = torch.tensor(members)
    return index if device.type == "cpu" else index.pin_memory().to(device, non_blocking=True)
