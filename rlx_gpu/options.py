"""Options of a whole optimizer, which both faces have; they may be set between steps."""

from __future__ import annotations

import torch

from .engine.engine import Engine
from .reference.trait import MAX_GRAD_NORM, SKIP_NONFINITE


class StepOptions:
    """What a face hands on to its engine, and reads of it."""

    _engine: Engine

    @property
    def skip_nonfinite(self) -> bool:
        """Whether a NaN or infinity in any gradient, or in the factor on them, makes a step a no-op."""
        return self._engine.skip_nonfinite

    @skip_nonfinite.setter
    def skip_nonfinite(self, value: bool) -> None:
        self._engine.skip_nonfinite = SKIP_NONFINITE.check(value)

    @property
    def max_grad_norm(self) -> float | None:
        """What steps bring the norm of all gradients down to."""
        return self._engine.max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        self._engine.max_grad_norm = MAX_GRAD_NORM.check(value)

    @property
    def grad_norm(self) -> torch.Tensor | None:
        """The norm of all gradients of the last step that `max_grad_norm` or `skip_nonfinite` asked for it, 0-d float32
        on a device of theirs, scaled but not clipped; NaN if a gradient held a NaN or infinity, None before the first.
        The next such step writes into it, and so does every replay of a captured one.
        """
        return self._engine.grad_norm

    def forget_captures(self) -> None:
        """Says that no CUDA graph with a step of this optimizer will be replayed any more: what they read may be freed,
        and is no longer considered when hyperparameters are sent or a state is loaded.
        """
        self._engine.forget_captures()
