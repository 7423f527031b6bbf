"""What a face hands to the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..table import Algorithm
from .devices import is_live
from .state import State, Storage


@dataclass(frozen=True, eq=False)
class Settings:
    """What a group of parameters has in common; `lr` is the tensor that holds the learning rate on a device, if any."""

    hyper: Mapping[str, Any]
    storage: Storage
    lr: torch.Tensor | None = None

    @classmethod
    def resolved(cls, algorithm: Algorithm, given: Mapping[str, Any], storage: Storage) -> Settings:
        """The settings for these hyperparameters, checked but for a learning rate that only the device reads."""
        live = given["lr"] if is_live(given.get("lr")) else None
        return cls(algorithm.resolve(given if live is None else {**given, "lr": 0.0}), storage, live)


class Scaling(NamedTuple):
    """What multiplies the gradients of a step, and what has it skipped; tensors of one element are not read here.

    Args:
        factor: on every gradient.
        divisor, found_inf: torch's GradScaler's: by what gradients are divided, and a number that has the step skipped
            unless it is 0; None for neither.
        max_norm: what the norm of all gradients, so scaled, is brought down to; None to leave it.
        guarded: whether a NaN or infinity in any gradient has the step skipped.
    """

    factor: float | torch.Tensor = 1.0
    divisor: float | torch.Tensor | None = None
    found_inf: float | torch.Tensor | None = None
    max_norm: float | None = None
    guarded: bool = False

    @property
    def measured(self) -> bool:
        """Whether the gradients' norm is needed."""
        return self.guarded or self.max_norm is not None

    @property
    def skippable(self) -> bool:
        """Whether the step may turn out to be skipped."""
        return self.guarded or self.found_inf is not None

    @property
    def plain(self) -> bool:
        """Whether the factor is all there is."""
        return not (self.measured or self.skippable) and self.divisor is None


@dataclass(eq=False, slots=True)
class Entry:
    """One parameter; the same object as long as nothing about it changes.

    `scale` is lr_scale, `origin` its first element's place among all elements, `grad_dtype` that of its last gradient.
    """

    name: str
    param: torch.Tensor
    group: int = 0
    scale: float = 1.0
    origin: int = 0
    grad_dtype: torch.dtype | None = None

    @property
    def grad_kind(self) -> torch.dtype:
        """What its gradient's dtype is taken to be."""
        return self.grad_dtype or self.param.dtype


@dataclass
class Batch:
    """One step's parameters, the gradient of each (None: it is not stepped), its state (None or empty where it was
    never stepped; completed in place), and the settings of every group.
    """

    entries: Sequence[Entry]
    grads: Sequence[torch.Tensor | None]
    states: Sequence[State | None]
    settings: Sequence[Settings]
