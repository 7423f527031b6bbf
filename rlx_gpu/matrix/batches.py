"""Matrices of one shape, and their state: one tensor for all of them, of which the parameters' slots are views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch

from ..engine.buckets import BucketKey, BucketMember
from ..engine.state import State, buffers
from .blocks import Block

PADDING = 8  # elements: every matrix of the workspace begins on a 128-bit boundary in any format


class Piece(NamedTuple):
    """One matrix: of which member of the bucket, and where in it."""

    member: int
    block: Block


@dataclass(frozen=True)
class Shelf:
    """The matrices of one shape, and batches of the slots that lie in batches, one entry for each."""

    pieces: Sequence[Piece]
    state: State

    @property
    def block(self) -> Block:
        """The first, as good as any."""
        return self.pieces[0].block

    @property
    def stride(self) -> int:
        """Elements from one matrix of the workspace to the next."""
        return -(-self.block.numel // PADDING) * PADDING

    def part(self, chosen: slice) -> Shelf:
        """Some of the matrices."""
        return Shelf(self.pieces[chosen], {slot: batch[chosen] for slot, batch in self.state.items()})


def in_batch(
    memory: torch.Tensor, count: int, stride: int, shape: tuple[int, ...], transposed: bool = False
) -> torch.Tensor:
    """A batch [count, *shape] over a stretch of memory."""
    batch = memory.view(count, stride)[:, : math.prod(shape)]
    return batch.view(count, *shape[::-1]).mT if transposed else batch.view(count, *shape)


def slot_shapes(key: BucketKey, member: BucketMember, block: Block) -> dict[str, tuple[tuple[int, ...], bool]]:
    """What slots in batches hold for one matrix: a shape, and whether memory holds it column by column.

    One that is kept in several buffers, which a routine cannot compute with, is refused by name.
    """
    spec: Any = key.spec
    param = member.entry.param
    leading = param.ndim - 2 if param.ndim > 2 and member.settings.hyper["ndim_policy"] == "batch" else 0
    shapes: dict[str, tuple[tuple[int, ...], bool]] = {}
    for slot, format in zip(spec.slots, key.formats[2:], strict=True):
        if slot in spec.prepare.slots:
            continue
        if len(buffers(format)) > 1:
            label = f"parameter {member.entry.name!r}: slot {slot!r}"
            raise ValueError(f"{label} lies in a batch, which cannot be {format}")
        shape = tuple(member.state[slot].shape)
        if slot in spec.numbers:
            shapes[slot] = (), False
        elif shape == tuple(param.shape):  # kept in the parameter's memory order
            shapes[slot] = block.shape, block.transposed
        else:
            shapes[slot] = shape[leading:], False
    return shapes


def home(slot: str, members: Sequence[BucketMember], layout: tuple[tuple[int, ...], bool]) -> torch.Tensor:
    """Moves a slot of members whose matrices have one `layout` (as in `slot_shapes`) into one tensor [B, ...], of which
    their states then hold views.
    """
    tensors = [member.state[slot] for member in members]
    first, (shape, transposed) = tensors[0], layout
    size = math.prod(shape)
    counts = [tensor.numel() // max(1, size) for tensor in tensors]
    if size == 0:  # a side that keeps the identity
        return first.new_empty((len(tensors), *shape))
    if fill_memory(tensors):
        memory = first.as_strided((sum(counts) * size,), (1,))
    else:
        memory = first.new_empty(sum(counts) * size)
        starts = np.cumsum([0, *counts[:-1]]) * size
        for member, tensor, start in zip(members, tensors, starts.tolist(), strict=True):
            member.state[slot] = memory.as_strided(tensor.shape, tensor.stride(), start).copy_(tensor)
    return in_batch(memory, sum(counts), size, shape, transposed)


def fill_memory(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether the tensors follow each other in one stretch of memory that holds nothing else."""
    memory, sizes = tensors[0].untyped_storage(), [tensor.nbytes for tensor in tensors]
    starts = accumulate(sizes[:-1], initial=memory.data_ptr())
    found = (tensor.data_ptr() == start for tensor, start in zip(tensors, starts, strict=True))
    return memory.nbytes() == sum(sizes) and all(found)
