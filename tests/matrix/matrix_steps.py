"""What a bucket tells a routine of a step, made for a batch that stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rlx_gpu.engine.batch import Entry, Settings
from rlx_gpu.engine.buckets import BucketMember
from rlx_gpu.engine.elementwise import Parts, RuleLaunch
from rlx_gpu.engine.inputs import StepInputs
from rlx_gpu.engine.rows import RowLaunch
from rlx_gpu.engine.state import DTYPE_NAMES, STEP, Storage
from rlx_gpu.kernels.spec import MatrixSpec
from rlx_gpu.matrix.step import MatrixStep

CPU = torch.device("cpu")


def told(spec: MatrixSpec, hyper: Mapping[str, Any], steps: Sequence[int], **counters: Sequence[float]) -> MatrixStep:
    """The step t of each matrix, its row computed by the kernel that computes all rows."""
    count = len(steps)
    inputs = StepInputs(CPU, count)
    inputs.grads.fill_(1)  # every matrix has a gradient, somewhere
    states = [{STEP: torch.tensor(float(step - 1))} for step in steps]
    for slot in spec.counters:
        for state, value in zip(states, counters[slot], strict=True):
            state[slot] = torch.tensor(float(value), dtype=torch.float64)
    settings = Settings(hyper, Storage())
    members = [BucketMember(i, i, Entry(str(i), torch.empty(0)), state, settings) for i, state in enumerate(states)]
    row = RowLaunch(spec, inputs, members, advance=True)
    row.send([settings])
    row.launch()
    unread = []  # interpreted, a rule that does not use its gradient loads it all the same

    def run(rule, x, slots):
        unread.append(torch.zeros(x[0].numel()))
        inputs.grads.fill_(unread[-1].data_ptr())
        place = np.arange(count)
        columns = [place * x.stride(0) * 4, place * 0]
        columns += [slot.data_ptr() + place * slot.stride(0) * slot.element_size() for slot in slots]
        parts = Parts(range(count), [x[0].numel()] * count, [0] * count)
        formats = ("float32", "float32", *(DTYPE_NAMES[slot.dtype] for slot in slots))
        RuleLaunch(rule, formats, inputs, parts, np.stack(columns, axis=1)).launch(x)

    own = {slot: tuple(map(float, values)) for slot, values in counters.items()}
    return MatrixStep(hyper, lambda name: inputs.rows[:, spec.row.names.index(name)], tuple(steps), own, CPU, run)
