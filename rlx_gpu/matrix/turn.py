"""What the host knows of a batch of matrices at one step."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from .fused import FusedRules

Selection = slice | torch.Tensor  # a batch indexed with it: a view, or a copy to be written back


@dataclass(frozen=True)
class Turn:
    """One step of a batch of B matrices.

    Args:
        steps: t of each matrix, from 1.
        before, after: by host-side scalar slot, its value for each matrix before and after this step.
        device: where index tensors go.
        fused: runs elementwise rules over these matrices; kept from step to step.
    """

    steps: tuple[int, ...]
    before: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    after: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fused: FusedRules = field(default_factory=FusedRules)

    def groups(self, values: Sequence[Hashable]) -> list[tuple[Hashable, Selection]]:
        """The values that occur, each with the matrices that have it: a slice where they lie side by side."""
        members: dict[Hashable, list[int]] = {}
        for index, value in enumerate(values):
            members.setdefault(value, []).append(index)
        return [(value, self._selection(own)) for value, own in members.items()]

    def _selection(self, members: list[int]) -> Selection:
        first, last = members[0], members[-1]
        if len(members) == last - first + 1:
            return slice(first, last + 1)
        index = torch.tensor(members)
        return index if self.device.type == "cpu" else index.pin_memory().to(self.device, non_blocking=True)
