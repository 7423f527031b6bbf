"""A plan: everything about a set of parameters that stays the same from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .batch import Batch, Entry, Settings
from .checks import check_grad, check_param, check_state
from .cohorts import Roster
from .control import IN_FLIGHT, Control, SkipLedger
from .dispatch import runs_kernels
from .layout import same_layout
from .state import STEP, State, expected_state, is_scalar_slot, new_slot
from .table import Algorithm

if TYPE_CHECKING:
    from .launch import NormBucket

Select = Callable[[Settings, torch.Tensor], Any]  # the rule for a parameter
_pointer = torch.Tensor.data_ptr
_stride, _size = torch.Tensor.stride, torch.Tensor.size
_numel = torch.Tensor.numel
_contiguous = torch.Tensor.is_contiguous
_dtype, _device = attrgetter("dtype"), attrgetter("device")


class Plan:
    """The buckets and tables for one set of parameters.

    Building it checks every tensor, then allocates missing state; it raises before anything is written.

    Args:
        algorithm: the optimizer.
        batch: the first step's batch. States are completed in place.
        select: the rule for a parameter's settings; asked only for parameters that the kernels step.
        guarded: whether steps may be skipped on the device. Then a cohort keeps a row for each step whose outcome the
            host may not know yet, and the gradients' norms have their tables ready.
    """

    grad_pointers: list[int]
    grad_layouts: list[Any]
    grad_dtypes: list[torch.dtype]
    grad_devices: list[torch.device]

    def __init__(self, algorithm: Algorithm, batch: Batch, select: Select, *, guarded: bool = False) -> None:
        self.algorithm = algorithm
        self.entries = list(batch.entries)
        self.params = [entry.param for entry in batch.entries]
        self.width = IN_FLIGHT + 1 if guarded else 1
        self.ledger = SkipLedger()
        self.layouts = [slot_names(algorithm, settings) for settings in batch.settings]
        members = list(zip(batch.entries, batch.grads, batch.states, strict=True))
        missing = [self._check(entry, grad, state, batch.settings[entry.group]) for entry, grad, state in members]
        for (entry, _, state), slots in zip(members, missing, strict=True):
            storage = batch.settings[entry.group].storage
            state.update({slot: new_slot(algorithm, slot, initial, entry.param, storage) for slot, initial in slots})
        self._start(batch, select, missing)
        self._home_counters(batch.states)
        self.copies = {
            i: torch.empty_like(entry.param, dtype=grad.dtype, requires_grad=False)
            for i, (entry, grad) in enumerate(zip(self.entries, batch.grads, strict=True))
            if not same_layout(entry.param, grad)
        }
        self.reference = [i for i, entry in enumerate(self.entries) if not runs_kernels(entry.param.device)]
        self.rosters = self._rosters(batch, select)
        # Where the host steps parameters itself, or launches by the step's number, it waits to know what was skipped.
        self.host_decides = bool(self.reference) or any(roster.bucket.key.spec.scheduled for roster in self.rosters)
        self.controls = {device: Control(device) for device in {roster.bucket.key.device for roster in self.rosters}}
        self.norms = self._norms(batch.grads) if guarded else []
        self._regroup()
        self.states = list(batch.states)
        self.slots = slots_of(batch)
        self.owned = list(map(_pointer, chain(self.params, self.slots)))
        self.param_layouts = layouts(self.params)
        shaped = any(roster.bucket.key.spec.shaped for roster in self.rosters)
        self.shapes = list(map(_size, self.params)) if shaped else []  # elsewhere a matrix is as good as a vector
        self._remember_grads(batch.grads)
        self._place(batch)

    def fits(self, batch: Batch) -> bool:
        """Whether this plan serves the batch; if only the gradients have moved, the tables follow them."""
        if batch.entries != self.entries or self.layouts != [slot_names(self.algorithm, s) for s in batch.settings]:
            return False
        slots = slots_of(batch)
        try:
            if list(map(_pointer, chain(self.params, slots))) != self.owned or not all(map(is_, slots, self.slots)):
                return False
            if layouts(self.params) != self.param_layouts or layouts(batch.grads) != self.grad_layouts:
                return False
            if list(map(_dtype, batch.grads)) != self.grad_dtypes:
                return False
            if self.shapes and list(map(_size, self.params)) != self.shapes:
                return False
            pointers = list(map(_pointer, batch.grads))
        except (RuntimeError, TypeError, AttributeError):  # a gradient that is sparse or no tensor: the check says so
            return False
        if pointers != self.grad_pointers:
            if list(map(_device, batch.grads)) != self.grad_devices:
                return False
            self.grad_pointers = pointers
            self._place_grads()
        # Where somebody wrote to a step count or another counter, a new plan checks what was written.
        counters = [self.steps, *self.counters.values()]
        expected = [self.expected_steps, *self.expected_counters.values()]
        return all(np.array_equal(*pair, equal_nan=True) for pair in zip(counters, expected, strict=True))

    def rows(self, roster: Roster, settings: Sequence[Settings]) -> torch.Tensor:
        """The hyperparameters of this step, on the device."""
        return roster.rows(self.algorithm, settings, self.ledger.pending, self.width)

    def advance(self, by: int) -> None:
        """Counts updates: one after a step, back when the device turns out to have skipped some."""
        self.steps += np.float32(by)
        self.expected_steps += np.float32(by)
        for roster in self.rosters:
            roster.advance(by, self.width, self.counters, self.expected_counters)

    def report(self) -> None:
        """Sends the count of skipped steps, the same on every device, on its way to the host."""
        first = min(self.controls, key=str)
        self.ledger.report(self.controls[first].skipped)

    def collect(self, *, wait: bool = False) -> None:
        """Takes back the counts of steps that turn out to have been skipped."""
        skipped = self.ledger.collect(wait=wait)
        if skipped:
            self.advance(-skipped)

    def _check(
        self, entry: Entry, grad: torch.Tensor, state: State, settings: Settings
    ) -> list[tuple[str, np.ndarray[Any, Any]]]:
        """Refuses what does not fit; returns the slots to allocate."""
        check_param(entry.name, entry.param)
        check_grad(entry.name, entry.param, grad)
        initial, expected = expected_state(self.algorithm, settings.hyper, entry.param, settings.storage)
        check_state(self.algorithm, entry, state, expected)
        if state and STEP not in state:
            raise ValueError(f"parameter {entry.name!r}: state slot {STEP!r} is missing; found {sorted(state)}")
        return [(slot, value) for slot, value in initial.items() if slot not in state]

    def _start(self, batch: Batch, select: Select, missing: Sequence[Sequence[tuple[str, Any]]]) -> None:
        """Sets what begins apart among new matrices of one shape, by their rule."""
        new: dict[Any, list[int]] = {}
        for i, (entry, slots) in enumerate(zip(self.entries, missing, strict=True)):
            if slots and runs_kernels(entry.param.device):
                starts = select(batch.settings[entry.group], entry.param).starts
                for slot in [slot for slot, _ in slots if slot in starts]:
                    new.setdefault((slot, starts[slot], entry.group, entry.param.shape), []).append(i)
        for (slot, start, group, _), members in new.items():
            for place, i in enumerate(members):
                batch.states[i][slot].fill_(start(batch.settings[group].hyper, place, len(members)))

    def _home_counters(self, states: Sequence[State]) -> None:
        """Moves the host-side scalars of all members into one array a slot; the states keep views."""
        self.steps = np.array([float(state[STEP]) for state in states], dtype=np.float32)
        scalars = {slot for state in states for slot in state if slot != STEP and is_scalar_slot(self.algorithm, slot)}
        self.counters = {
            slot: np.array([float(state.get(slot, np.nan)) for state in states]) for slot in sorted(scalars)
        }
        for slot, array in {STEP: self.steps, **self.counters}.items():
            views = torch.from_numpy(array)
            for i, state in enumerate(states):
                if slot in state:
                    state[slot] = views[i]

    def _rosters(self, batch: Batch, select: Select) -> list[Roster]:
        """Sorts the members that the kernels step into buckets."""
        buckets: dict[Any, dict[int, Any]] = {}
        for i, (entry, grad, state) in enumerate(zip(self.entries, batch.grads, batch.states, strict=True)):
            if not runs_kernels(entry.param.device):
                continue
            from .kernels.spec import RuleSpec
            from .launch import Member, bucket_key

            settings = batch.settings[entry.group]
            spec = select(settings, entry.param)
            if not isinstance(spec, RuleSpec) and entry.param.numel() == 0:  # the means of nothing are undefined
                continue
            member = Member(entry, grad, state, settings)
            buckets.setdefault(bucket_key(spec, member), {})[i] = member
        return [self._roster(key, members) for key, members in buckets.items()]

    def _roster(self, key: Any, members: dict[int, Any]) -> Roster:
        from .launch import make_bucket, on_device

        with on_device(key.device):
            bucket = make_bucket(key, list(members.values()))
        return Roster(bucket, key.spec.slots, list(members))

    def _norms(self, grads: Sequence[torch.Tensor]) -> list[NormBucket]:
        """The gradients that the kernels read, by device and dtype."""
        from .launch import NormBucket, on_device

        kinds: dict[Any, list[int]] = {}
        for i in [i for roster in self.rosters for i in roster.members]:
            kinds.setdefault((grads[i].device, grads[i].dtype), []).append(i)
        buckets = []
        for (device, _), members in kinds.items():
            with on_device(device):
                buckets.append(NormBucket([self.copies.get(i, grads[i]) for i in members], members))
        return buckets

    def _regroup(self) -> None:
        """Finds which members share a row from now on: same group, scale, step and counters."""
        self.expected_steps = self.steps.copy()
        self.expected_counters = {slot: array.copy() for slot, array in self.counters.items()}
        for roster in self.rosters:
            roster.regroup(self.entries, self.steps, self.counters)

    def _remember_grads(self, grads: Sequence[torch.Tensor]) -> None:
        self.grad_pointers = list(map(_pointer, grads))
        self.grad_layouts = layouts(grads)
        self.grad_dtypes = list(map(_dtype, grads))
        self.grad_devices = list(map(_device, grads))

    def _place(self, batch: Batch) -> None:
        """Sends every bucket the addresses of its streams and the rows that its members read."""
        for roster in self.rosters:
            streams = [[self.entries[i].param.data_ptr() for i in roster.members], [0] * len(roster.members)]
            streams += [[batch.states[i][slot].data_ptr() for i in roster.members] for slot in roster.slots]
            roster.pointers = np.array(streams, dtype=np.int64).T
        self._place_grads()

    def _place_grads(self) -> None:
        """Sends every bucket the addresses again, the gradients' being new."""
        grads = np.array(self.grad_pointers, dtype=np.int64)
        for i, buffer in self.copies.items():
            grads[i] = buffer.data_ptr()
        for roster in self.rosters:
            roster.pointers[:, 1] = grads[roster.members]
            roster.bucket.place(roster.pointers, np.array(roster.cohort_of, dtype=np.int64) * self.width)
        for norm in self.norms:
            norm.place(grads[list(norm.members)])


def slots_of(batch: Batch) -> list[torch.Tensor]:
    """Every state tensor."""
    return list(chain.from_iterable(map(dict.values, batch.states)))


def layouts(tensors: Sequence[torch.Tensor]) -> list[Any]:
    """What decides how flat memory is read: sizes, and strides unless all tensors are contiguous."""
    contiguous = list(map(_contiguous, tensors))
    return [*map(_numel, tensors), *(contiguous if all(contiguous) else map(_stride, tensors))]


def slot_names(algorithm: Algorithm, settings: Settings) -> Any:
    """What decides which buffers and which rule a param group uses."""
    hyper = settings.hyper
    choices = [hyper[name] for name in algorithm.structural]
    return settings.storage, choices, tuple(algorithm.reference.init_state((1, 1), **hyper))
