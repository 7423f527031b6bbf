"""What a face hands to the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .state import State, Storage


@dataclass(frozen=True)
class Settings:
    """What a group of parameters has in common: checked hyperparameters and storage."""

    hyper: Mapping[str, Any]
    storage: Storage


@dataclass(eq=False, slots=True)
class Entry:
    """One parameter: name (for errors), tensor, group, lr_scale, and its first element's place among all elements."""

    name: str
    param: torch.Tensor
    group: int = 0
    scale: float = 1.0
    origin: int = 0


@dataclass
class Batch:
    """One step's parameters, with the gradient and the state of each, and the settings of every group."""

    entries: Sequence[Entry]
    grads: Sequence[torch.Tensor]
    states: Sequence[State]
    settings: Sequence[Settings]
