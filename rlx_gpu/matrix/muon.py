"""Muon's bucket: momentum into batches, Newton–Schulz, update; the first and the last fused over all matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch

from ..cohorts import Clock
from ..kernels.codecs import CODECS
from ..kernels.rules.matrices import APPLY
from ..kernels.rules.muon import MOMENTUM, NESTEROV
from ..launch import BucketKey, ElementwiseBucket, Member
from ..reference.newton_schulz import Triple, schedule
from .blocks import Block, blocks
from .newton_schulz import oriented, orthogonalize_

WAVE_ELEMENTS = 2**30  # that are orthogonalised in one workspace: more than a model of a billion parameters has
PADDING = 8  # elements: every matrix of the workspace begins on a 128-bit boundary in any format


@dataclass(frozen=True)
class Shelf:
    """Where the matrices of one shape lie in the workspace, and what the iteration does to them.

    Args:
        start: first element.
        count: how many matrices.
        memory: rows and columns as memory holds them.
        triples: the iteration's coefficients, the last scaled by s.
    """

    start: int
    count: int
    memory: tuple[int, int]
    triples: tuple[Triple, ...]

    @property
    def stride(self) -> int:
        """Elements from one matrix to the next."""
        return -(-math.prod(self.memory) // PADDING) * PADDING

    def wide(self, workspace: torch.Tensor) -> torch.Tensor:
        """The batch [count, m, n] with m ≤ n, as `oriented`."""
        rows, cols = self.memory
        return oriented(workspace.as_strided((self.count, rows, cols), (self.stride, cols, 1), self.start))


class MuonBucket:
    """Matrices of one param group under Muon.

    Beyond the state a step takes, for its duration, the matrices in `ns_dtype`, at most WAVE_ELEMENTS elements of them
    (or one matrix), and what `orthogonalize_` needs for the matrices of one shape.

    Args:
        key: device, rule, codecs and param group.
        members: the parameters.

    Raises:
        ValueError: a parameter whose matrices cannot be told apart in memory.
    """

    def __init__(self, key: BucketKey, members: Sequence[Member]) -> None:
        hyper = members[0].settings.hyper
        self.key = key
        shapes: dict[Any, list[Piece]] = {}
        for place, member in enumerate(members):
            for block in blocks(member.entry.name, member.entry.param, hyper):
                rows, cols = block.shape
                memory = (cols, rows) if block.transposed else (rows, cols)
                scale = update_scale(hyper["adjust_lr_fn"], rows, cols)
                shapes.setdefault((memory, scale), []).append(Piece(place, block, memory, scale))
        self.waves = [Wave(key, members, pieces) for pieces in waves(list(chain.from_iterable(shapes.values())))]

    def place(self, pointers: Any, rows: Any) -> None:
        """Takes the addresses int64 [members, streams] and the index of each member's first hyperparameter row."""
        for wave in self.waves:
            wave.place(pointers, rows)

    def step(self, hypers: torch.Tensor, control: torch.Tensor, clock: Clock) -> None:
        """Momentum and norms, normalisation, Newton–Schulz, update."""
        for wave in self.waves:
            wave.step(hypers, control)


@dataclass(frozen=True)
class Piece:
    """One matrix: of which member, where in it, rows and columns as memory holds them, and s."""

    place: int
    block: Block
    memory: tuple[int, int]
    scale: float


def waves(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The matrices in order, in runs of at most WAVE_ELEMENTS elements."""
    found: list[list[Piece]] = [[]]
    room = WAVE_ELEMENTS
    for piece in pieces:
        room -= piece.block.numel
        if room < 0 and found[-1]:
            found.append([])
            room = WAVE_ELEMENTS - piece.block.numel
        found[-1].append(piece)
    return found


class Wave:
    """Matrices that are gathered in one launch and applied in another, in one workspace."""

    def __init__(self, key: BucketKey, members: Sequence[Member], pieces: Sequence[Piece]) -> None:
        hyper = members[0].settings.hyper
        self.device = key.device
        self.dtype: torch.dtype = getattr(torch, hyper["ns_dtype"])
        triples = schedule(hyper["ns_coefficients"], hyper["ns_steps"])
        self.shelves: list[Shelf] = []
        starts: list[int] = []
        self.size = 0
        for (memory, scale), own in groupby(pieces, key=lambda piece: (piece.memory, piece.scale)):
            count = len(list(own))
            shelf = Shelf(self.size, count, memory, scaled_last(triples, scale))
            starts += range(self.size, self.size + count * shelf.stride, shelf.stride)
            self.size += count * shelf.stride
            self.shelves.append(shelf)
        self.starts = np.array(starts, dtype=np.int64)
        self.places = np.array([piece.place for piece in pieces])
        self.offsets = np.array([piece.block.offset for piece in pieces], dtype=np.int64)
        numels = [piece.block.numel for piece in pieces]
        origins = [members[piece.place].entry.origin + piece.block.offset for piece in pieces]
        param, grad, momentum = key.codecs
        x = CODECS[hyper["ns_dtype"]]
        rule = NESTEROV if hyper["nesterov"] else MOMENTUM
        self.gather = ElementwiseBucket(BucketKey(key.device, rule, (x, grad, momentum)), numels, origins)
        self.apply = ElementwiseBucket(BucketKey(key.device, APPLY, (param, param, x)), numels, origins)
        streams = members[0].streams(key.spec)
        self.widths = np.array([stream.element_size() for stream in streams], dtype=np.int64)
        self.workspace_at: int | None = None

    def place(self, pointers: Any, rows: Any) -> None:
        """Takes the addresses and rows of all members."""
        self.pointers = pointers[self.places] + self.offsets[:, None] * self.widths
        self.rows = rows[self.places]
        self.workspace_at = None

    def step(self, hypers: torch.Tensor, control: torch.Tensor) -> None:
        """One update of every matrix."""
        workspace = torch.empty(self.size, dtype=self.dtype, device=self.device)
        self._place_workspace(workspace.data_ptr())
        self.gather.step(hypers, control)
        for shelf in self.shelves:
            matrices = shelf.wide(workspace)
            orthogonal = orthogonalize_(matrices, shelf.triples)
            if orthogonal.data_ptr() != matrices.data_ptr():
                matrices.copy_(orthogonal)
        self.apply.step(hypers, control)

    def _place_workspace(self, address: int) -> None:
        """Sends all addresses, unless the allocator has given the same memory as in the step before."""
        if address == self.workspace_at:
            return
        x = address + self.starts * self.dtype.itemsize
        param, grad, momentum = self.pointers.T
        self.gather.place(np.stack([x, grad, momentum], axis=1), self.rows)
        self.apply.place(np.stack([param, param, x], axis=1), self.rows)
        self.workspace_at = address


BUCKET = MuonBucket


def update_scale(adjust_lr_fn: str, rows: int, cols: int) -> float:
    """s: the factor that makes the update's size independent of the matrix's shape."""
    return {
        "original": math.sqrt(max(1.0, rows / cols)),
        "match_rms_adamw": 0.2 * math.sqrt(max(rows, cols)),
        "unit_rms": math.sqrt(max(rows, cols)),
        "spectral": math.sqrt(rows / cols),
    }[adjust_lr_fn]


def scaled_last(triples: Sequence[Triple], scale: float) -> tuple[Triple, ...]:
    """The coefficients with s multiplied into the last step, which is linear in them."""
    a, b, c = triples[-1]
    return (*triples[:-1], (a * scale, b * scale, c * scale))
