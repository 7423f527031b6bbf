"""The fused multi-tensor driver: launches of an elementwise rule over whole parameters, or over parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..kernels import elementwise, reductions
from ..kernels.codecs import ALIGNMENT, codecs_of
from ..kernels.spec import RuleSpec
from . import launch, tables
from .buckets import BucketKey, BucketMember, Step, addresses
from .devices import number_dtype
from .inputs import StepInputs
from .portions import portions
from .tables import Array, upload


class Parts(NamedTuple):
    """The tensors of a launch, parameters or parts of them: of which member, elements, first element among all."""

    members: Sequence[int]
    numels: Sequence[int]
    origins: Sequence[int]


class RuleLaunch:
    """All launches of an elementwise rule over tensors whose streams are dense and of one memory order.

    `formats` are those of parameter, gradient and the rule's slots; `pointers` int64 [tensors, buffers] are addresses,
    or offsets in bytes as the rule says.
    """

    def __init__(
        self, spec: RuleSpec, formats: tuple[str, ...], inputs: StepInputs, parts: Parts, pointers: Array
    ) -> None:
        self.inputs, device = inputs, inputs.device
        numels = np.array(parts.numels, dtype=np.int64)
        block, dtype = portions(device).block, number_dtype(device)
        chunks, ranges = tables.blocks(numels, block)
        self.programs, self.chunks, self.ranges = len(chunks), upload(chunks, device), upload(ranges, device)
        vector_end = np.where((pointers % ALIGNMENT == 0).all(axis=1), numels, 0)
        fixed = {"numel": numels, "vector_end": vector_end, "member": parts.members, "origin": parts.origins}
        self.table = upload(tables.table(elementwise.COLUMNS, fixed, pointers), device)
        codecs = codecs_of(formats)
        self.passes = [(one.sums, elementwise.constants(spec, i, codecs, block)) for i, one in enumerate(spec.passes)]
        sums = max(one.sums for one in spec.passes)
        self.partials = torch.empty((self.programs, sums), dtype=dtype, device=device)
        self.sums = torch.empty((len(numels), sums), dtype=dtype, device=device)

    def launch(self, workspace: torch.Tensor | None = None) -> None:
        """All passes of the rule; streams in the workspace lie at offsets from this, which is 16-byte aligned."""
        rows, grads, words = self.inputs.rows, self.inputs.grads, self.inputs.words
        base = rows if workspace is None else workspace
        pointers = (self.table, self.chunks, rows, grads, words, base, self.sums, self.partials)
        for sums, constants in self.passes:
            launch.launch(elementwise.fused_step_kernel, self.programs, *pointers, **constants)
            if sums:
                finish_sums(self.partials, self.ranges, self.sums)


class ElementwiseBucket:
    """Parameters under one elementwise rule."""

    waits = False

    def __init__(self, key: BucketKey, members: Sequence[BucketMember], inputs: StepInputs) -> None:
        assert isinstance(key.spec, RuleSpec)
        places, entries = [member.place for member in members], [member.entry for member in members]
        parts = Parts(places, [entry.param.numel() for entry in entries], [entry.origin for entry in entries])
        self.rule = RuleLaunch(key.spec, key.formats, inputs, parts, addresses(key, members))

    def step(self, step: Step) -> None:
        """All passes of the rule."""
        self.rule.launch()


def finish_sums(partials: torch.Tensor, ranges: torch.Tensor, sums: torch.Tensor) -> None:
    """Adds each tensor's partial sums, in order."""
    count, block = sums.shape[1], reductions.FINISH_BLOCK
    launch.launch(reductions.finish_sums_kernel, len(sums), partials, ranges, sums, SUMS=count, BLOCK=block)
