"""Whether tensors are still what a plan was made for: the host's part of every step, so it is made of C loops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import numpy as np
import torch

from .batch import Entry
from .launch import Readers
from .memory import same_order
from .state import STEP, State

_pointer = torch.Tensor.data_ptr
_stride, _size = torch.Tensor.stride, torch.Tensor.size
_is_neg = torch.Tensor.is_neg
_numel, _contiguous = torch.Tensor.numel, torch.Tensor.is_contiguous
_dtype, _device, _version = attrgetter("dtype"), attrgetter("device"), attrgetter("_version")
EMPTY = 16  # stands for the address of an empty gradient: 0 would say that there is none


class TensorWatch:
    """Parameters and states: the same tensors, in the same memory and order, and steps that nobody else wrote to.

    Of the `slots`, `numbers` are those of one number that steps carry on; what happens to these behind torch's back,
    through `.data` or a kernel, goes unnoticed. Unless `shaped`, a matrix is as good as a vector.
    """

    def __init__(
        self,
        params: Sequence[torch.Tensor],
        states: Sequence[State],
        slots: Iterable[str],
        numbers: Sequence[str],
        *,
        shaped: bool,
    ) -> None:
        self.params = params
        self.matrices = [param for param in params if param.ndim > 1]  # a vector has one order
        self.layout = _layout(self.matrices)
        self.shapes = list(map(_size, params)) if shaped else []
        self.slots: list[tuple[Any, list[State], list[torch.Tensor]]] = []
        for slot in slots:
            holders = [state for state in states if slot in state]
            self.slots.append((itemgetter(slot), holders, [state[slot] for state in holders]))
        # Numbers lie beside others and do not move by themselves; where there is nothing else, they are asked as well.
        others = set(slots) - set(numbers)
        found = [[state[slot] for slot in others & state.keys()] for state in states]
        alone = [state[STEP] for state, own in zip(states, found, strict=True) if not own]
        self.tensors = [*params, *chain.from_iterable(found), *alone]
        self.pointers = list(map(_pointer, self.tensors))
        self.kept = [value.untyped_storage() for _, _, values in self.slots for value in values]  # kernels write there
        counted = [number for state in states for slot in numbers if (number := state.get(slot)) is not None]
        self.homes = list({one.untyped_storage().data_ptr(): one for one in counted if not one.is_inference()}.values())
        self.versions = list(map(_version, self.homes))

    def holds(self) -> bool:
        """Whether nothing has changed."""
        try:
            return (
                all(all(map(is_, map(slot, states), values)) for slot, states, values in self.slots)
                and list(map(_pointer, self.tensors)) == self.pointers
                and _layout(self.matrices) == self.layout
                and list(map(_version, self.homes)) == self.versions
                and (not self.shapes or list(map(_size, self.params)) == self.shapes)
            )
        except KeyError:  # a slot is missing
            return False


class GradWatch:
    """The gradients of a plan: which there are, where they lie, and copies of those in another memory order.

    Those at the places `members` have a state. `places` are
    those that have a gradient, and as flags, `present`; `stepped` their parameters; `pointers` int64, the addresses
    for the kernels, by place in the plan.
    """

    def __init__(self, entries: Sequence[Entry], members: Sequence[int]) -> None:
        self.params = [entry.param for entry in entries]
        self.numels = list(map(_numel, self.params))
        self.dtypes = [entry.grad_dtype or entry.param.dtype for entry in entries]
        self.devices = list(map(_device, self.params))
        self.members = set(members)
        self.everyone = list(range(len(entries)))
        self.buffers: dict[int, torch.Tensor] = {}
        self.readers: list[Readers] = []  # of these buffers
        self.copies: list[int] = []
        self.found: list[int] = []
        self._choose([])

    def follows(self, grads: Sequence[torch.Tensor | None]) -> tuple[bool, bool]:
        """Whether the plan serves these gradients, and whether their addresses have to be sent."""
        try:
            return self._follow(grads)
        except (RuntimeError, TypeError, AttributeError):  # sparse, or no tensor: the check says so
            return False, False

    def expects(self, grads: Sequence[torch.Tensor | None]) -> bool:
        """Whether these are gradients of the parameters that had one in the last step."""
        return [i for i, grad in enumerate(grads) if grad is not None] == self.places

    def copy(self, grads: Sequence[torch.Tensor | None]) -> None:
        """Copies the gradients of another memory order than their parameter into its order."""
        for reader in self.readers:
            reader.note()
        for i in self.copies:
            grad = grads[i]
            assert grad is not None
            self.buffers[i].copy_(grad)

    def _follow(self, grads: Sequence[Any]) -> tuple[bool, bool]:
        try:
            found, places, given = list(map(_pointer, grads)), self.everyone, grads
        except TypeError:  # some are missing
            places = [i for i, grad in enumerate(grads) if grad is not None]
            given = [grads[i] for i in places]
            found = list(map(_pointer, given))
        moved = places is not self.places and places != self.places
        if moved:
            if not self.members.issuperset(places):
                return False, False
            self._choose(places)
        if list(map(_numel, given)) != self.own_numels or list(map(_dtype, given)) != self.own_dtypes:
            self._choose([])
            return False, False
        contiguous = list(map(_contiguous, given))
        if contiguous != self.contiguous or (self.strides and list(map(_stride, given)) != self.strides):
            self._arrange(given, contiguous)
            moved = True
        if moved or found != self.found:
            if list(map(_device, given)) != self.own_devices:
                return False, False
            addresses = np.array(found, dtype=np.int64)
            if any(map(_is_neg, given)) or (addresses[np.array(self.own_numels) > 0] == 0).any():
                return False, False  # the check says why
            self.found = found
            addresses[addresses == 0] = EMPTY
            self.pointers[:] = 0
            self.pointers[places] = addresses
            for i in self.copies:
                self.pointers[i] = self.buffers[i].data_ptr()
            return True, True
        return True, False

    def _choose(self, places: list[int]) -> None:
        """Expects gradients at these places from now on."""
        self.places, self.present = places, np.zeros(len(self.params), dtype=bool)
        self.present[places] = True
        self.pointers = np.zeros(len(self.params), dtype=np.int64)
        everyone = len(places) == len(self.params)
        expected: tuple[list[Any], ...] = self.params, self.numels, self.dtypes, self.devices
        own = expected if everyone else [[values[i] for i in places] for values in expected]
        self.stepped, self.own_numels, self.own_dtypes, self.own_devices = own
        self.found = []
        self.contiguous: list[bool] = []
        self.strides: list[Any] = []

    def _arrange(self, given: Sequence[torch.Tensor], contiguous: list[bool]) -> None:
        """Finds which gradients have to be copied."""
        self.contiguous = contiguous
        self.strides = [] if all(contiguous) else list(map(_stride, given))
        pairs = zip(self.places, given, strict=True)
        self.copies = [i for i, grad in pairs if not same_order(self.params[i], grad)]
        for i in self.copies:
            if i not in self.buffers:
                self.buffers[i] = torch.empty_like(self.params[i], dtype=self.dtypes[i], requires_grad=False)
                self.readers.append(Readers(self.devices[i], [self.buffers[i]]))


def _layout(params: Sequence[torch.Tensor]) -> list[Any]:
    """In which order flat memory is read; how far, the gradients say, which are as large as their parameters."""
    contiguous = list(map(_contiguous, params))
    return contiguous if all(contiguous) else list(map(_stride, params))
