"""Buckets of whole matrices: their state lies in batches of equal shape, which a routine updates as one."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..cohorts import Clock
from ..kernels.codecs import CODECS
from ..kernels.rules.matrices import APPLY, GATHER
from ..launch import BucketKey, ElementwiseBucket, Member
from ..state import State
from .blocks import Block, blocks
from .fused import FusedRules

WORKSPACE_ELEMENTS = 1 << 28  # of the gradients that one call of a routine works on, if a matrix is no larger
PADDING = 4  # elements: every float32 matrix of the workspace begins on a 128-bit boundary
Routine = Callable[..., torch.Tensor]


class MatrixBucket:
    """Matrices of one param group under one routine.

    The state of all matrices of a shape is one tensor, and a parameter's slots are views of it. Beyond it a step takes,
    for its duration, the gradients of at most WORKSPACE_ELEMENTS elements (or one matrix) in float32, and what the
    routine needs for them.

    Args:
        key: device, rule, codecs and param group.
        members: the parameters; their states are moved into batches.

    Raises:
        ValueError: a parameter whose matrices cannot be told apart in memory.
    """

    def __init__(self, key: BucketKey, members: Sequence[Member]) -> None:
        spec: Any = key.spec
        self.key = key
        routine: Routine = importlib.import_module(f"{__package__}.{spec.routine}").direction
        shapes: dict[Any, list[tuple[int, Block]]] = {}
        for place, member in enumerate(members):
            entry = member.entry
            own = [whole(entry.param)] if spec.flat else blocks(entry.name, entry.param, member.settings.hyper)
            for block in own:
                shapes.setdefault((block.shape, block.transposed), []).append((place, block))
        self.chunks: list[Chunk] = []
        for pieces in shapes.values():
            block = pieces[0][1]
            batches = {
                slot: home(slot, [members[place] for place in dict.fromkeys(place for place, _ in pieces)], shape)
                for slot, shape in slot_shapes(spec, members[pieces[0][0]], block).items()
            }
            size = max(1, WORKSPACE_ELEMENTS // block.numel)
            for start in range(0, len(pieces), size):
                part = slice(start, start + size)
                state = {slot: batch[part] for slot, batch in batches.items()}
                self.chunks.append(Chunk(key, routine, members, pieces[part], state))

    def place(self, pointers: Any, rows: Any) -> None:
        """Takes the addresses int64 [members, streams] and the index of each member's first hyperparameter row."""
        for chunk in self.chunks:
            chunk.place(pointers[chunk.places], rows[chunk.places])

    def step(self, hypers: torch.Tensor, control: torch.Tensor, clock: Clock) -> None:
        """Shape by shape: gathers gradients, runs the routine, applies the directions."""
        for chunk in self.chunks:
            chunk.step(hypers, control, clock)


class Chunk:
    """Matrices of one shape that a routine updates in one call."""

    def __init__(
        self,
        key: BucketKey,
        routine: Routine,
        members: Sequence[Member],
        pieces: Sequence[tuple[int, Block]],
        state: State,
    ) -> None:
        block = pieces[0][1]
        self.device, self.routine, self.state = key.device, routine, state
        self.count, self.shape, self.transposed, self.numel = len(pieces), block.shape, block.transposed, block.numel
        self.stride = -(-self.numel // PADDING) * PADDING
        self.places = [place for place, _ in pieces]
        param, grad = key.codecs[:2]
        sizes = [stream.element_size() for stream in (members[0].entry.param, members[0].grad)]
        self.offsets = np.outer([block.offset for _, block in pieces], np.array(sizes, dtype=np.int64))
        origins = [members[place].entry.origin + block.offset for place, block in pieces]
        numels, float32 = [block.numel for _, block in pieces], CODECS["float32"]
        self.gather = ElementwiseBucket(BucketKey(key.device, GATHER, (float32, grad)), numels, origins)
        self.apply = ElementwiseBucket(BucketKey(key.device, APPLY, (param, param, float32)), numels, origins)
        self.fused = FusedRules()
        self.workspace_at: int | None = None

    def place(self, pointers: Any, rows: Any) -> None:
        """Takes the addresses of the pieces' parameters."""
        self.pointers = pointers[:, :2] + self.offsets
        self.rows = rows
        self.workspace_at = None

    def step(self, hypers: torch.Tensor, control: torch.Tensor, clock: Clock) -> None:
        """One update of every matrix."""
        workspace = torch.empty(self.count * self.stride, dtype=torch.float32, device=self.device)
        self._place_workspace(workspace.data_ptr())
        self.gather.step(hypers, control)
        grad = in_batch(workspace, self.count, self.stride, self.shape, self.transposed)
        direction = self.routine(grad, self.state, clock.hyper, clock.turn(self.places, self.device, self.fused))
        if direction.data_ptr() != grad.data_ptr():
            grad.copy_(direction)
        self.apply.step(hypers, control)

    def _place_workspace(self, address: int) -> None:
        """Sends all addresses, unless the allocator has given the same memory as in the step before."""
        if address == self.workspace_at:
            return
        batch = address + np.arange(self.count, dtype=np.int64) * self.stride * 4
        param, grad = self.pointers.T
        self.gather.place(np.stack([batch, grad], axis=1), self.rows)
        self.apply.place(np.stack([param, param, batch], axis=1), self.rows)
        self.workspace_at = address


def whole(param: torch.Tensor) -> Block:
    """A parameter as one vector, in the order of its memory."""
    return Block(0, (param.numel(),), transposed=False)


def in_batch(
    memory: torch.Tensor, count: int, stride: int, shape: tuple[int, ...], transposed: bool = False
) -> torch.Tensor:
    """A batch [count, *shape] over a stretch of memory."""
    batch = memory.view(count, stride)[:, : math.prod(shape)]
    return batch.view(count, *shape[::-1]).mT if transposed else batch.view(count, *shape)


def slot_shapes(spec: Any, member: Member, block: Block) -> dict[str, tuple[tuple[int, ...], bool]]:
    """What every slot holds for one matrix: a shape, and whether memory holds it column by column."""
    param = member.entry.param
    leading = param.ndim - 2 if param.ndim > 2 and member.settings.hyper["ndim_policy"] == "batch" else 0
    shapes: dict[str, tuple[tuple[int, ...], bool]] = {}
    for slot in spec.slots:
        shape = tuple(member.state[slot].shape)
        if slot in spec.numbers:
            shapes[slot] = (), False
        elif shape == tuple(param.shape):  # kept in the parameter's memory order
            shapes[slot] = block.shape, block.transposed
        else:
            shapes[slot] = shape[leading:], False
    return shapes


def home(slot: str, members: Sequence[Member], layout: tuple[tuple[int, ...], bool]) -> torch.Tensor:
    """Moves a slot of all members into one tensor, of which their states then hold views.

    Args:
        slot: its name.
        members: parameters whose matrices have one shape.
        layout: see `slot_shapes`.

    Returns:
        [B, ...], one entry for each matrix of each member in order.
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
    storage = tensors[0].untyped_storage().data_ptr()
    if tensors[0].untyped_storage().nbytes() != sum(tensor.numel() * tensor.element_size() for tensor in tensors):
        return False
    ends = [tensor.data_ptr() + tensor.numel() * tensor.element_size() for tensor in tensors]
    return all(
        tensor.untyped_storage().data_ptr() == storage and tensor.data_ptr() == end
        for tensor, end in zip(tensors[1:], ends, strict=False)
    )
