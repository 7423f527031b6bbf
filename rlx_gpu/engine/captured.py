"""What replays of captured steps go on reading.

A replay runs the launches and copies that were captured and nothing of the host's part of a step. So a captured step
must be like the one before it, all that it reads must stay where it is, and what the host would send is sent by
`Engine.send_hyperparameters`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .batch import Scaling, Settings
from .capture import CaptureError

CAPTURES = 16  # with gradients in other places each, that are possible without a step in between


class Addresses:
    """Places in pinned memory for addresses of gradients: each captured copy reads its own at every replay."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.count, self.pinned = count, device.type == "cuda"
        self.rows: list[torch.Tensor] = []
        self.used = 0
        self.refill()

    def refill(self) -> None:
        """Makes room for captures to come; not while one is under way."""
        if len(self.rows) - self.used < CAPTURES:
            self.rows += torch.empty((CAPTURES, self.count), dtype=torch.int64, pin_memory=self.pinned).unbind()

    def hold(self, addresses: np.ndarray[Any, Any]) -> torch.Tensor:
        """The addresses in memory that stays."""
        for row in self.rows[: self.used]:
            if np.array_equal(row.numpy(), addresses):
                return row
        if self.used == len(self.rows):
            raise CaptureError(
                f"no room for the addresses of gradients of more than {CAPTURES} captures in a row: take a step "
                "outside of a capture between them"
            )
        row = self.rows[self.used]
        row.numpy()[:] = addresses
        self.used += 1
        return row


Homes = Mapping[int, tuple[int, Any]]  # by a parameter's id, its group and its state
FORMATS = ("state_dtype", "rounding")
AGAIN = "capture again, after forget_captures()"


@dataclass(frozen=True)
class Captured:
    """A captured step of a plan: what it was like, and what it goes on reading.

    The hyperparameters in `structural`, which no device holds, and which tensors hold learning rates, stay what they
    were. `places` are tensors by what errors call them, with their addresses, `homes` where parameters were at home,
    and `kept` is other memory that replays read.
    """

    settings: Sequence[Settings]
    scaling: Scaling
    structural: Sequence[str]
    places: Sequence[tuple[str, torch.Tensor, int]]
    homes: Sequence[tuple[str, torch.Tensor, int, Any]]
    kept: Sequence[Any]

    def check(self, settings: Sequence[Settings], scaling: Scaling, homes: Homes | None) -> None:
        """Refuses, by a ValueError, what replays of these steps could not follow; None for homes that cannot change."""
        for label, tensor, place in self.places:
            if tensor.data_ptr() != place:
                raise ValueError(f"{label}: was moved after a step was captured; {AGAIN}")
        for name, param, group, state in self.homes:
            found = (group, state) if homes is None else homes.get(id(param), (None, None))
            if found[0] != group or found[1] is not state:
                raise ValueError(
                    f"parameter {name!r}: has another group or state than when a step was captured; {AGAIN}"
                )
        for index, (old, new) in enumerate(zip(self.settings, settings, strict=False)):
            label = f"param_groups[{index}]"
            if new.lr is not old.lr:
                was = "was a number" if old.lr is None else "lay in another tensor"
                raise ValueError(f"{label}['lr']: {was} when a step was captured; give it back, or {AGAIN}")
            changed = [name for name in self.structural if old.hyper[name] != new.hyper[name]]
            changed += [name for name in FORMATS if getattr(old.storage, name) != getattr(new.storage, name)]
            if changed:
                raise ValueError(f"{label}[{changed[0]!r}]: captured steps cannot follow; {AGAIN}")
        for name, before, now in (
            ("skip_nonfinite", self.scaling.guarded, scaling.guarded),
            ("max_grad_norm", self.scaling.max_norm is not None, scaling.max_norm is not None),
        ):
            if before != now:
                raise ValueError(f"{name} was switched {'on' if now else 'off'}: captured steps cannot follow; {AGAIN}")
