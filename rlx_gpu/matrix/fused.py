"""Elementwise rules over batches that a matrix routine holds: one launch, a row of scalars for each matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from .. import launch_tables
from ..state import DTYPE_NAMES

if TYPE_CHECKING:
    from ..kernels.spec import RuleSpec


class FusedRules:
    """Launches of rules, with their tables: for one batch of matrices, step after step.

    The tables are the holder's own. Were they shared by batches of one shape, a step on another stream or thread could
    read them while they are written.
    """

    def __init__(self) -> None:
        self._tables: dict[object, _Tables] = {}

    def run(
        self, spec: RuleSpec, param: torch.Tensor, slots: Sequence[torch.Tensor], rows: Sequence[tuple[float, ...]]
    ) -> None:
        """Runs a rule over batches in place.

        Args:
            spec: a rule that does not read its gradient.
            param: [B, ...], each matrix dense; the batch that stands in the parameter's place.
            slots: [B, ...] of the same strides within a matrix.
            rows: scalars of the rule for each matrix.
        """
        streams = [param, param, *slots]
        assert all(stream.stride()[1:] == param.stride()[1:] for stream in slots), "the batches' memory orders differ"
        count, numel = len(param), math.prod(param.shape[1:])
        names = tuple(DTYPE_NAMES[stream.dtype] for stream in streams)
        starts = np.array([stream.data_ptr() for stream in streams], dtype=np.int64)
        steps = np.array([stream.stride(0) * stream.element_size() for stream in streams], dtype=np.int64)
        pointers = starts + np.arange(count, dtype=np.int64)[:, None] * steps
        key = spec, param.device, names, count, numel
        if key not in self._tables:
            self._tables[key] = _Tables(*key)
        self._tables[key].run(pointers, rows)


class _Tables:
    """The tables of one rule for batches of one shape."""

    def __init__(self, spec: RuleSpec, device: torch.device, names: tuple[str, ...], count: int, numel: int) -> None:
        from ..kernels.codecs import CODECS
        from ..launch import BucketKey, ElementwiseBucket, on_device

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
        rows_of_scalars = launch_tables.hyper_rows(list(distinct), zeros, zeros)
        self.bucket.step(launch_tables.upload(rows_of_scalars, self.bucket.key.device), self.control)
