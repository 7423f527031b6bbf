"""The fused multi-tensor driver: launches of an elementwise rule over whole parameters, or over parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..kernels import elementwise
from ..kernels.codecs import ALIGNMENT, codecs_of
from ..kernels.spec import RuleSpec
from . import tables
from .buckets import BucketKey, BucketMember, Step, addresses
from .devices import number_dtype
from .inputs import StepInputs
from .launch import Launch
from .portions import portions
from .sums import SumLaunch
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
        device = inputs.device
        numels = np.array(parts.numels, dtype=np.int64)
        block, dtype = portions(device).block, number_dtype(device)
        chunks, ranges = tables.blocks(numels, block)
        vector_end = np.where((pointers % ALIGNMENT == 0).all(axis=1), numels, 0)
        fixed = {"numel": numels, "vector_end": vector_end, "member": parts.members, "origin": parts.origins}
        table = upload(tables.table(elementwise.COLUMNS, fixed, pointers), device)
        sums = max(one.sums for one in spec.passes)
        self.sums = torch.empty((len(numels), sums), dtype=dtype, device=device)
        partials = torch.empty((len(chunks), sums), dtype=dtype, device=device)
        base = None if "workspace" in dict(spec.offsets).values() else inputs.rows  # which are as good as any
        before = table, upload(chunks, device), inputs.rows, inputs.grads, inputs.words, base, self.sums, partials
        codecs = codecs_of(formats)
        self.passes: list[Launch | SumLaunch] = []
        for index, one in enumerate(spec.passes):
            constants = elementwise.constants(spec, index, codecs, block)
            self.passes.append(Launch(elementwise.fused_step_kernel, len(chunks), *before, **constants))
            if one.sums:
                self.passes.append(SumLaunch(partials, ranges, self.sums))

    def launch(self, workspace: torch.Tensor | None = None) -> None:
        """All passes of the rule; streams in the workspace lie at offsets from this, which is 16-byte aligned."""
        for one in self.passes:
            one.run(workspace)


class ElementwiseBucket:
    """Parameters under one elementwise rule."""

    waits = False

    def __init__(self, key: BucketKey, members: Sequence[BucketMember], inputs: StepInputs) -> None:
        assert isinstance(key.spec, RuleSpec)
        places, entries = [member.place for member in members], [member.entry for member in members]
        parts = Parts(places, [entry.param.numel() for entry in entries], [entry.origin for entry in entries])
        self.rule = RuleLaunch(key.spec, key.formats, inputs, parts, addresses(key, members))

    def make_tables(self, step: Step) -> None:
        """Nothing: all was made with the plan."""

    def forget_captures(self) -> None:
        """Nothing: captured steps read what all do."""

    def step(self, step: Step) -> None:
        """All passes of the rule."""
        self.rule.launch()
