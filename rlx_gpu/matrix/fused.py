"""An elementwise rule over batches that a matrix routine holds: one launch, a row of scalars for each matrix."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch

from .. import launch_tables
from ..kernels.codecs import CODECS
from ..kernels.spec import RuleSpec
from ..launch import BucketKey, ElementwiseBucket, on_device
from ..state import DTYPE_NAMES

MOST_BUCKETS = 256


class _Batch:
    """The tables of one rule for batches of one shape."""

    def __init__(self, spec: RuleSpec, device: torch.device, names: tuple[str, ...], count: int, numel: int) -> None:
        codecs = tuple(CODECS[name] for name in names)
        with on_device(device):
            self.bucket = ElementwiseBucket(BucketKey(device, spec, codecs), [numel] * count, [0] * count)
            self.control = launch_tables.upload(np.array([1.0, 0.0, 0.0], dtype=np.float32), device)
        self.placed: object = None

    def run(self, pointers: np.ndarray, rows: Sequence[tuple[float, ...]]) -> None:
        """Places the batches where they lie now, and launches."""
        distinct = {row: index for index, row in enumerate(dict.fromkeys(rows))}
        row_of = np.array([distinct[row] for row in rows], dtype=np.int64)
        placed = (pointers.tobytes(), row_of.tobytes())
        if placed != self.placed:
            self.bucket.place(pointers, row_of)
            self.placed = placed
        zeros = [0] * len(distinct)
        hypers = launch_tables.upload(launch_tables.hyper_rows(list(distinct), zeros, zeros), self.bucket.key.device)
        self.bucket.step(hypers, self.control)


_batch = functools.lru_cache(maxsize=MOST_BUCKETS)(_Batch)


def fused_rule(
    spec: RuleSpec, param: torch.Tensor, slots: Sequence[torch.Tensor], rows: Sequence[tuple[float, ...]]
) -> None:
    """Runs a rule over batches in place.

    Args:
        spec: a rule that does not read its gradient.
        param: [B, ...], each matrix dense; the batch that stands in the parameter's place.
        slots: [B, ...] of the same strides within a matrix.
        rows: scalars of the rule for each matrix.
    """
    streams = [param, param, *slots]
    count, numel = len(param), math.prod(param.shape[1:])
    assert all(stream.stride()[1:] == param.stride()[1:] for stream in slots), "the batches' memory orders differ"
    names = tuple(DTYPE_NAMES[stream.dtype] for stream in streams)
    starts = np.array([stream.data_ptr() for stream in streams], dtype=np.int64)
    steps = np.array([stream.stride(0) * stream.element_size() for stream in streams], dtype=np.int64)
    pointers = starts + np.arange(count, dtype=np.int64)[:, None] * steps
    _batch(spec, param.device, names, count, numel).run(pointers, rows)
