"""Launches: one bucket is a set of tensors that share device, rule and storage, and steps in one go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from . import launch_tables
from .batch import Entry, Settings
from .cohorts import Clock
from .dispatch import interpreted
from .kernels import elementwise, factored, reductions
from .kernels.arithmetic import LAUNCH_OPTIONS
from .kernels.codecs import ALIGNMENT, CODECS, Codec
from .kernels.spec import FactoredSpec, MatrixSpec, RuleSpec
from .state import DTYPE_NAMES, State

if interpreted():
    from .interpreter import repair

    repair()

launches: Counter[str] = Counter()  # kernel launches by name since the process began


@dataclass(frozen=True)
class BucketKey:
    """What tensors must share to be stepped together; matrices share their param group as well (`group`)."""

    device: torch.device
    spec: RuleSpec | FactoredSpec | MatrixSpec
    codecs: tuple[Codec, ...]
    group: int | None = None


class Bucket(Protocol):
    """A set of tensors that is stepped together."""

    key: BucketKey

    def place(self, pointers: Any, rows: Any) -> None:
        """Sends the addresses int64 [tensors, streams] and the index of each tensor's first hyperparameter row."""

    def step(self, hypers: torch.Tensor, control: torch.Tensor, clock: Clock) -> None:
        """All launches of a step."""


@dataclass(frozen=True)
class Member:
    """One parameter of a bucket. A bucket may move the state elsewhere when it is made, and then updates `state`."""

    entry: Entry
    grad: torch.Tensor
    state: State
    settings: Settings

    def streams(self, spec: RuleSpec | FactoredSpec | MatrixSpec) -> list[torch.Tensor]:
        """Parameter, gradient and the rule's slots."""
        return [self.entry.param, self.grad, *(self.state[slot] for slot in spec.slots)]


def bucket_key(spec: RuleSpec | FactoredSpec | MatrixSpec, member: Member) -> BucketKey:
    """The bucket of one parameter."""
    names = [DTYPE_NAMES[tensor.dtype] for tensor in member.streams(spec)]
    if names[0] == "bfloat16" and member.settings.storage.rounding == "stochastic":
        names[0] = "bfloat16_stochastic"
    group = member.entry.group if isinstance(spec, MatrixSpec) else None
    return BucketKey(member.entry.param.device, spec, tuple(CODECS[name] for name in names), group)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Makes the device current for launches."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def launch(kernel: Any, programs: int | tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Runs a kernel on the current stream and counts it; no programs, no launch.

    Args:
        programs: how many, or the grid.
        constants: compile-time arguments, and launch options where they differ from the elementwise kernels'.
    """
    grid = (programs,) if isinstance(programs, int) else programs
    if all(grid):
        kernel[grid](*arguments, **{**LAUNCH_OPTIONS, **constants})
        launches[kernel.__name__] += 1


class ElementwiseBucket:
    """Tensors under one elementwise rule.

    Args:
        key: device, rule and codecs.
        numels: per tensor, its elements; all streams of a tensor are dense and of one layout.
        origins: per tensor, the index of its first element among all parameters.
    """

    def __init__(self, key: BucketKey, numels: Sequence[int], origins: Sequence[int]) -> None:
        assert isinstance(key.spec, RuleSpec)
        self.key, self.spec = key, key.spec
        self.numels = np.array(numels, dtype=np.int64)
        self.origins = np.array(origins, dtype=np.int64)
        programs, ranges = launch_tables.blocks(self.numels, elementwise.BLOCK)
        self.programs = len(programs)
        self.chunks = launch_tables.upload(programs, key.device)
        self.ranges = launch_tables.upload(ranges, key.device)
        sums = max(current.sums for current in key.spec.passes)
        self.partials = torch.empty((self.programs, sums), dtype=torch.float32, device=key.device)
        self.sums = torch.empty((len(numels), sums), dtype=torch.float32, device=key.device)

    def place(self, pointers: Any, rows: Any) -> None:
        """Sends the addresses int64 [tensors, streams] and the index of each tensor's first hyperparameter row."""
        aligned = (pointers % ALIGNMENT == 0).all(axis=1)
        tail = (self.numels, np.where(aligned, self.numels, 0), rows, self.origins)
        table = np.concatenate([pointers, np.stack(tail, axis=1)], axis=1)
        self.table = launch_tables.upload(table, self.key.device)

    def step(self, hypers: torch.Tensor, control: torch.Tensor, clock: Clock | None = None) -> None:
        """All passes of the rule."""
        scalars = hypers.shape[1] - launch_tables.KEY_WORDS
        for index, current in enumerate(self.spec.passes):
            constants = elementwise.constants(self.spec, index, self.key.codecs, scalars)
            pointers = (self.table, self.chunks, hypers, control, self.sums, self.partials)
            launch(elementwise.fused_step_kernel, self.programs, *pointers, **constants)
            if current.sums:
                finish_sums(self.partials, self.ranges, self.sums)


class FactoredBucket:
    """Matrices under one factored rule. A transposed matrix is stepped as the matrix its memory holds.

    Args:
        key: device, rule and codecs.
        params: the matrices.
        origins: per tensor, the index of its first element among all parameters.
    """

    def __init__(self, key: BucketKey, params: Sequence[torch.Tensor], origins: Sequence[int]) -> None:
        assert isinstance(key.spec, FactoredSpec)
        self.key, self.spec = key, key.spec
        self.transposed = np.array([not param.is_contiguous() for param in params])
        shapes = np.array([tuple(param.shape) for param in params], dtype=np.int64)
        self.rows, self.cols = np.where(self.transposed[:, None], shapes[:, ::-1], shapes).T
        self.origins = np.array(origins, dtype=np.int64)
        programs, ranges = launch_tables.tiles(self.rows, self.cols, factored.TILE_ROWS, factored.TILE_COLS)
        vector_blocks = launch_tables.vectors(self.rows, self.cols, factored.VECTOR_BLOCK)
        self.programs, self.vector_programs = len(programs), len(vector_blocks)
        row_ranges = launch_tables.blocks(self.rows, factored.VECTOR_BLOCK)[1]  # of the programs that step row vectors
        self.tiles, self.vectors, self.ranges, self.row_ranges = (
            launch_tables.upload(array, key.device) for array in (programs, vector_blocks, ranges, row_ranges)
        )
        row_partials = self.rows * -(-self.cols // factored.TILE_COLS)
        col_partials = self.cols * -(-self.rows // factored.TILE_ROWS)
        ends = np.cumsum(np.concatenate([row_partials, col_partials]))
        self.partial_starts = np.concatenate([[0], ends[:-1]]).reshape(2, -1)
        workspace = (int(ends[-1]), (self.vector_programs, 1), (len(params), 1), (self.programs, 2), (len(params), 2))
        self.workspace, self.vector_sums, self.row_sums, self.partials, self.sums = (
            torch.empty(shape, dtype=torch.float32, device=key.device) for shape in workspace
        )

    def place(self, pointers: Any, rows: Any) -> None:
        """Sends the addresses int64 [tensors, 4] and the index of each tensor's first hyperparameter row."""
        pointers = np.where(self.transposed[:, None], pointers[:, [0, 1, 3, 2]], pointers)
        vectorized = (pointers[:, :2] % ALIGNMENT == 0).all(axis=1) & (self.cols % 8 == 0)
        tail = (self.rows, self.cols, vectorized, *self.partial_starts, rows, self.origins)
        table = np.concatenate([pointers, np.stack(tail, axis=1)], axis=1)
        self.table = launch_tables.upload(table, self.key.device)

    def step(self, hypers: torch.Tensor, control: torch.Tensor, clock: Clock | None = None) -> None:
        """Tile sums, moments, the sum of `row_var`, norms, update."""
        constants = factored.constants(self.spec, self.key.codecs, hypers.shape[1] - launch_tables.KEY_WORDS)
        tiles = (self.table, self.tiles, hypers, control, self.workspace)
        vectors = (self.table, self.vectors, hypers, control, self.workspace, self.vector_sums)
        launch(factored.factored_sums_kernel, self.programs, *tiles, **constants["sums"])
        launch(factored.factored_moments_kernel, self.vector_programs, *vectors, **constants["moments"])
        finish_sums(self.vector_sums, self.row_ranges, self.row_sums)
        step_kernel = factored.factored_step_kernel
        launch(step_kernel, self.programs, *tiles, self.row_sums, self.partials, **constants["norms"])
        finish_sums(self.partials, self.ranges, self.sums)
        launch(step_kernel, self.programs, *tiles, self.row_sums, self.sums, **constants["update"])


def make_bucket(key: BucketKey, members: Sequence[Member]) -> Bucket:
    """The bucket of the key's kind."""
    if isinstance(key.spec, MatrixSpec):
        from .matrix import make_matrix_bucket

        return make_matrix_bucket(key, members)
    params, origins = [member.entry.param for member in members], [member.entry.origin for member in members]
    if isinstance(key.spec, FactoredSpec):
        return FactoredBucket(key, params, origins)
    return ElementwiseBucket(key, [param.numel() for param in params], origins)


def finish_sums(partials: torch.Tensor, ranges: torch.Tensor, sums: torch.Tensor) -> None:
    """Adds each tensor's partial sums, in order."""
    count, block = sums.shape[1], reductions.FINISH_BLOCK
    launch(reductions.finish_sums_kernel, len(sums), partials, ranges, sums, SUMS=count, BLOCK=block)


def guard(sums: torch.Tensor, control: torch.Tensor, skipped: torch.Tensor, known: int) -> None:
    """Turns the count of entries that are not finite into the skip flag and the row offset, on the device."""
    launch(reductions.guard_kernel, 1, sums, control, skipped, known)


class NormBucket:
    """Tensors of one device and dtype whose squares are summed together; `members` is the caller's note of which."""

    def __init__(self, tensors: Sequence[torch.Tensor], members: Sequence[int] = ()) -> None:
        device = tensors[0].device
        self.members = members
        codec = CODECS[DTYPE_NAMES[tensors[0].dtype]]
        key = BucketKey(device, reductions.SQUARED_NORM, (codec, codec))
        self.bucket = ElementwiseBucket(key, [tensor.numel() for tensor in tensors], [0] * len(tensors))
        self.hypers = torch.zeros((1, launch_tables.KEY_WORDS), dtype=torch.float32, device=device)
        self.control = launch_tables.upload(np.array([1.0, 0.0, 0.0], dtype=np.float32), device)
        self.everything = launch_tables.upload(np.array([[0, len(tensors)]], dtype=np.int64), device)
        self.total = torch.empty((1, 2), dtype=torch.float32, device=device)

    def place(self, pointers: Any) -> None:
        """Sends the addresses int64 [tensors]."""
        self.bucket.place(np.stack([pointers, pointers], axis=1), np.zeros(len(pointers), dtype=np.int64))

    def sums(self) -> torch.Tensor:
        """float32 [2] on the device: the sum of the squares of finite entries, and the number of the others."""
        self.bucket.step(self.hypers, self.control)
        finish_sums(self.bucket.sums, self.everything, self.total)
        return self.total[0]


def total_norm(buckets: Sequence[NormBucket], device: torch.device) -> torch.Tensor:
    """As `NormBucket.sums`, over all buckets, the total on `device`."""
    total = torch.zeros(2, dtype=torch.float32, device=device)
    for bucket in buckets:
        with on_device(bucket.total.device):
            total += bucket.sums().to(device, non_blocking=True)
    return total


def squared_norm(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """As `NormBucket.sums`, for dense tensors of any float dtypes and devices."""
    kinds: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    buckets = []
    for (where, _), members in kinds.items():
        with on_device(where):
            buckets.append(NormBucket(members))
            buckets[-1].place(np.array([member.data_ptr() for member in members], dtype=np.int64))
    return total_norm(buckets, device)
