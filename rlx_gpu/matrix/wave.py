"""Matrices that are prepared in one launch and applied in another, in one workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..engine.buckets import BucketKey, BucketMember, Step, addresses
from ..engine.devices import on_device
from ..engine.elementwise import Parts, RuleLaunch
from ..engine.inputs import StepInputs
from ..engine.launch import Readers
from ..engine.state import DTYPE_NAMES, STEP, State, buffers, read_scalars
from ..engine.tables import Array
from ..kernels.spec import MatrixSpec, RuleSpec
from .batches import Piece, Shelf, in_batch
from .step import MatrixStep, selection


class Mirror:
    """The step counts and other numbers of parameters on the host, for rules whose launches depend on them: read once,
    as a plan whose steps somebody else has written to makes way for a new one.
    """

    def __init__(self, states: Sequence[State], slots: Sequence[str]) -> None:
        self.steps = read_scalars([state[STEP] for state in states]).astype(np.int64)
        self.counters: dict[str, Array] = {slot: read_scalars([state[slot] for state in states]) for slot in slots}


@dataclass(frozen=True)
class Common:
    """What all matrices of a bucket have in common; `mirror` for scheduled rules only."""

    key: BucketKey
    spec: MatrixSpec
    routine: ModuleType
    members: Sequence[BucketMember]
    inputs: StepInputs
    batch_format: str
    mirror: Mirror | None


class Wave:
    """Matrices of any shapes that share a workspace."""

    def __init__(self, common: Common, shelves: Sequence[Shelf]) -> None:
        self.common, self.shelves = common, shelves
        self.members = [piece.member for shelf in shelves for piece in shelf.pieces]
        self.flags: Array | None = None
        self.tables: WaveTables | None = None
        self.captured: list[WaveTables] = []  # that replays read

    def make_tables(self, flags: Array) -> None:
        """Makes the tables of the matrices whose member's flag is true, unless they are there."""
        if self.flags is None or not np.array_equal(flags, self.flags):
            self.tables = None  # before new ones come
            some = flags[self.members].any()
            self.flags = None  # until these are whole
            with on_device(self.common.inputs.device):
                self.tables = WaveTables(self.common, self.shelves, flags) if some else None
            self.flags = flags

    def step(self, step: Step) -> None:
        """One update of these."""
        if self.tables is not None:
            self.tables.step(step)
            self.captured += [self.tables] if step.captured else []


class WaveTables:
    """The launches for those matrices of a wave that have a gradient, as long as these are the same."""

    def __init__(self, common: Common, shelves: Sequence[Shelf], flags: Array) -> None:
        self.common, spec, key = common, common.spec, common.key
        self.dtype: torch.dtype = getattr(torch, common.batch_format)
        self.batches: list[WaveBatch] = []
        starts: list[int] = []
        self.size = 0
        for shelf in shelves:
            chosen = [i for i, piece in enumerate(shelf.pieces) if flags[piece.member]]
            if chosen:
                self.batches.append(WaveBatch(common, shelf, chosen, self.size))
                end = self.size + len(chosen) * shelf.stride
                starts += range(self.size, end, shelf.stride)
                self.size = end
        pieces = [piece for batch in self.batches for piece in batch.pieces]
        at = np.array(starts, dtype=np.int64)[:, None] * self.dtype.itemsize
        pointers = addresses(key, common.members)[[piece.member for piece in pieces]] + offsets(common, pieces)
        (param, grad, *slots), x, own = key.formats, common.batch_format, parts(common, pieces)
        formats, last = ((x, grad, *slots), None) if spec.prepare.slots else ((x, grad), 2)
        prepared, applied = np.hstack([at, pointers[:, 1:last]]), np.hstack([pointers[:, :2], at])
        self.prepare = RuleLaunch(spec.prepare, formats, common.inputs, own, prepared)
        self.apply = RuleLaunch(spec.apply, (param, grad, x), common.inputs, own, applied)

    def step(self, step: Step) -> None:
        """One update of every matrix."""
        words = -(-self.size * self.dtype.itemsize // 4)
        workspace = torch.empty(words, dtype=torch.float32, device=self.common.inputs.device)
        self.prepare.launch(workspace)
        for batch in self.batches:
            batch.compute(workspace.view(self.dtype), step)
        self.apply.launch(workspace)


class WaveBatch:
    """The chosen matrices of a shelf, which begin in the workspace at `start`."""

    def __init__(self, common: Common, shelf: Shelf, chosen: Sequence[int], start: int) -> None:
        self.common, self.shelf = common, shelf
        self.pieces = [shelf.pieces[i] for i in chosen]
        self.stretch = slice(start, start + len(chosen) * shelf.stride)
        self.members = [piece.member for piece in self.pieces]
        self.where = selection(chosen, common.inputs.device)
        self.rows = selection([common.members[member].place for member in self.members], common.inputs.device)
        self.readers = Readers(common.inputs.device, [self.where, self.rows, *shelf.state.values()])
        self.grads = offsets(common, self.pieces)[:, 1]
        self._rule: tuple[Any, RuleLaunch] | None = None
        if common.spec.between is not None:
            spec, dtype = common.spec.between, getattr(torch, common.batch_format)
            slots = [shelf.state[slot][self.where] for slot in spec.slots]
            self._launches(spec, dtype, slots[0].stride(0), slots)

    def compute(self, workspace: torch.Tensor, step: Step) -> None:
        """Turns gradients into directions, in place."""
        common, shelf, block = self.common, self.shelf, self.shelf.block
        self.readers.note()
        grad = in_batch(workspace[self.stretch], len(self.pieces), shelf.stride, block.shape, block.transposed)
        state = {slot: batch[self.where] for slot, batch in shelf.state.items()}
        direction = common.routine.direction(grad, state, self._told(step))
        if direction.data_ptr() != grad.data_ptr():
            grad.copy_(direction)
        if not isinstance(self.where, slice):
            for slot, batch in shelf.state.items():
                batch[self.where] = state[slot]

    def run(self, spec: RuleSpec, x: torch.Tensor, slots: Sequence[torch.Tensor]) -> None:
        """As `MatrixStep.run`."""
        assert all(slot.stride()[1:] == x.stride()[1:] for slot in slots), "the batches' memory orders differ"
        self._launches(spec, x.dtype, x.stride(0), slots).launch(x)

    def _launches(self, spec: RuleSpec, dtype: torch.dtype, stride: int, slots: Sequence[torch.Tensor]) -> RuleLaunch:
        """The launches of a rule over a batch of matrices so many elements apart; those of the last step if it can."""
        key = spec, stride, tuple((slot.data_ptr(), slot.stride(0)) for slot in slots)
        if self._rule is None or self._rule[0] != key:
            place = np.arange(len(self.pieces), dtype=np.int64)
            columns = [place * stride * dtype.itemsize, self.grads]
            columns += [slot.data_ptr() + place * slot.stride(0) * slot.element_size() for slot in slots]
            formats = (DTYPE_NAMES[dtype], self.common.key.formats[1], *(DTYPE_NAMES[slot.dtype] for slot in slots))
            own, pointers = parts(self.common, self.pieces), np.stack(columns, axis=1)
            self._rule = key, RuleLaunch(spec, formats, self.common.inputs, own, pointers)
        return self._rule[1]

    def _told(self, step: Step) -> MatrixStep:
        """What the routine is told of a step."""
        common, mirror = self.common, self.common.mirror
        steps = () if mirror is None else tuple(mirror.steps[self.members].tolist())
        counters = {} if mirror is None else {slot: tuple(own[self.members]) for slot, own in mirror.counters.items()}
        hyper = step.settings[common.members[0].entry.group].hyper
        return MatrixStep(hyper, self._column, steps, counters, common.inputs.device, self.run)

    def _column(self, name: str) -> torch.Tensor:
        """One number of the row of each matrix."""
        column = self.common.inputs.rows[:, self.common.spec.row.names.index(name)][self.rows]
        return column if self.common.batch_format == "float64" else column.float()


def parts(common: Common, pieces: Sequence[Piece]) -> Parts:
    """The matrices as the tensors of a launch."""
    members = [common.members[piece.member] for piece in pieces]
    origins = [member.entry.origin + piece.block.offset for member, piece in zip(members, pieces, strict=True)]
    return Parts([member.place for member in members], [piece.block.numel for piece in pieces], origins)


def offsets(common: Common, pieces: Sequence[Piece]) -> Array:
    """int64 [pieces, buffers]: where a piece begins in each buffer of its parameter, in bytes."""
    kinds = [buffer for format in common.key.formats for buffer in buffers(format)]
    sizes = np.array([getattr(torch, kind.dtype).itemsize for kind in kinds], dtype=np.int64)
    shared = np.array([kind.group for kind in kinds], dtype=np.int64)
    places = np.array([piece.block.offset for piece in pieces], dtype=np.int64)[:, None]
    assert not (places % shared).any(), "a piece begins within a group"
    result: Array = places // shared * sizes
    return result
