"""The driver of whole matrices: prepare, compute, apply, for every optimizer that treats them.

A rule writes the gradients of all matrices into a workspace, where those of one shape lie as a batch; a routine turns
each batch into directions; a rule applies them. The first and the last are one launch each for all shapes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from ..engine.batch import Entry
from ..engine.buckets import BucketKey, BucketMember, Step, grouped
from ..engine.inputs import StepInputs
from ..kernels.spec import MatrixSpec
from .batches import Piece, Shelf, home, slot_shapes
from .blocks import Block, blocks
from .wave import Common, Mirror, Wave


class MatrixBucket:
    """Matrices of one param group under one routine.

    Beyond the state a step takes, for its duration, the gradients of at most MOST_ELEMENTS elements of the routine (or
    of one matrix) in the batches' format, and what the routine says. Where only some matrices have a gradient and they
    do not lie side by side, their state is copied out and back. A parameter whose matrices cannot be told apart in
    memory is refused by a ValueError.
    """

    def __init__(self, key: BucketKey, members: Sequence[BucketMember], inputs: StepInputs) -> None:
        spec: Any = key.spec
        routine = importlib.import_module(f"{__package__}.{spec.routine}")
        hyper, states = members[0].settings.hyper, [member.state for member in members]
        entries = [member.entry for member in members]
        if spec.flat:
            found = [[Block(0, (entry.param.numel(),), transposed=False)] for entry in entries]
        else:
            found = [blocks(entry.name, entry.param, hyper) for entry in entries]
        pieces = chain.from_iterable([Piece(place, block) for block in own] for place, own in enumerate(found))
        shapes = grouped(pieces, lambda piece: (piece.block.shape, piece.block.transposed))
        shelves = [shelf(key, members, own) for own in shapes.values()]  # moves state, of which addresses are taken
        self.waits, self.indices = spec.scheduled, [member.index for member in members]
        self.mirror = Mirror(states, spec.counters) if spec.scheduled else None
        batch_format = hyper[spec.batch_dtype] if spec.batch_dtype else "float32"
        if key.formats[0] == "float64":  # on the CPU: nothing of it is rounded to less
            batch_format = "float64"
        common = Common(key, spec, routine, members, inputs, batch_format, self.mirror)
        self.waves = [Wave(common, own) for own in waves(shelves, routine.MOST_ELEMENTS)]

    @staticmethod
    def check(spec: Any, entry: Entry, hyper: Mapping[str, Any]) -> None:
        """Refuses a parameter whose matrices cannot be told apart in memory."""
        if isinstance(spec, MatrixSpec) and not spec.flat and entry.param.numel():
            blocks(entry.name, entry.param, hyper)

    def make_tables(self, step: Step) -> None:
        """The tables of the matrices with a gradient."""
        flags = step.present[self.indices]
        for wave in self.waves:
            wave.make_tables(flags)

    def forget_captures(self) -> None:
        """Lets go of tables that captured steps alone read."""
        for wave in self.waves:
            wave.captured.clear()

    def step(self, step: Step) -> None:
        """One update of every matrix with a gradient."""
        if self.mirror is not None:
            self.mirror.steps += step.present[self.indices]
        for wave in self.waves:
            wave.step(step)


def shelf(key: BucketKey, members: Sequence[BucketMember], pieces: Sequence[Piece]) -> Shelf:
    """The matrices of one shape, their state moved into batches."""
    own = [members[place] for place in dict.fromkeys(piece.member for piece in pieces)]
    shapes = slot_shapes(key, own[0], pieces[0].block)
    return Shelf(pieces, {slot: home(slot, own, shape) for slot, shape in shapes.items()})


def waves(shelves: Sequence[Shelf], most: int) -> list[list[Shelf]]:
    """The shelves in order, cut where need be, in runs of at most so many elements (or one matrix)."""
    found: list[list[Shelf]] = [[]]
    room = most
    for shelf in shelves:
        start, size = 0, max(1, shelf.block.numel)
        while start < len(shelf.pieces):
            if room < size and found[-1]:
                found.append([])
                room = most
            part = slice(start, start + max(1, room // size))
            found[-1].append(shelf.part(part))
            room -= size * len(shelf.pieces[part])
            start = part.stop
    return found
