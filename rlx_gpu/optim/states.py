"""The states that a torch optimizer holds."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch

from ..engine.state import State


class HeldStates:
    """The states of flat parameters in their order, as long as an optimizer's `state` holds the same."""

    def __init__(self, state: Mapping[Any, State], params: list[torch.Tensor]) -> None:
        self.state, self.values, self.params = state, list(state.values()), params
        self.states = [state.get(param) for param in params]
        self.missing = [i for i, one in enumerate(self.states) if one is None]

    def serves(self, state: Mapping[Any, State], params: list[torch.Tensor], grads: list[Any]) -> bool:
        """Whether nothing has changed, and every parameter with a gradient has a state."""
        same = state is self.state and params is self.params and len(state) == len(self.values)
        if not same or any(grads[i] is not None for i in self.missing):
            return False
        return all(map(operator.is_, state.values(), self.values))


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of state that an optimizer keeps on its parameters' devices, step counts and other scalars left out."""
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor) and t.ndim)
