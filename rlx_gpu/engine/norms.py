"""Sums of squares over tensors of any formats and devices, and the guard that has a step skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..kernels import reductions
from . import launch
from .buckets import BucketMember, grouped
from .devices import number_dtype, on_device
from .elementwise import Parts, RuleLaunch, finish_sums
from .inputs import SKIP, StepInputs
from .state import DTYPE_NAMES
from .tables import send, upload


class NormLaunch:
    """Gradients of one device and dtype whose squares are summed together; `placed` are places in `inputs`, and sizes.

    `total` [1, 2], a device's numbers, takes the sum of the squares of finite entries, and how many others there are.
    """

    def __init__(
        self, dtype: torch.dtype, inputs: StepInputs, placed: Sequence[tuple[int, int]], total: torch.Tensor
    ) -> None:
        members, numels = zip(*placed, strict=True)
        formats, pointers = (DTYPE_NAMES[dtype],) * 2, np.zeros((len(members), 2), dtype=np.int64)
        parts = Parts(members, numels, [0] * len(members))
        self.rule = RuleLaunch(reductions.SQUARED_NORM, formats, inputs, parts, pointers)
        self.everything = upload(np.array([[0, len(members)]], dtype=np.int64), inputs.device)
        self.total = total

    def launch(self) -> None:
        """Fills `total`."""
        self.rule.launch()
        finish_sums(self.rule.sums, self.everything, self.total)


class Guard:
    """Has a step skipped on every device if any gradient on any of them holds a NaN or infinity."""

    def __init__(self, members: Sequence[BucketMember], inputs: Mapping[torch.device, StepInputs]) -> None:
        self.inputs = inputs
        kinds = grouped(members, lambda member: (member.entry.param.device, member.entry.grad_kind))
        self.totals = {
            device: torch.zeros((len(kinds), 2), dtype=number_dtype(device), device=device) for device in inputs
        }
        self.norms = []
        for index, ((device, dtype), own) in enumerate(kinds.items()):
            with on_device(device):
                placed = [(member.place, member.entry.param.numel()) for member in own]
                total = self.totals[device][index : index + 1]
                # The words of a guarded step change; the norm's launches are never skipped.
                self.norms.append((device, index, NormLaunch(dtype, inputs[device].unguarded(), placed, total)))

    def launch(self) -> None:
        """Norms, then the flag; nothing waits."""
        for device, index, norm in self.norms:
            with on_device(device):
                norm.launch()
            for other, totals in self.totals.items():
                if other != device:
                    totals[index : index + 1].copy_(norm.total, non_blocking=True)
        for device, totals in self.totals.items():
            with on_device(device):
                launch.launch(reductions.guard_kernel, 1, totals, self.inputs[device].words, COUNT=len(totals))

    def skips(self) -> bool:
        """Whether the step is skipped; waits for the device."""
        return any(bool(inputs.words[SKIP] != 0) for inputs in self.inputs.values())


def squared_norm(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """float32 [2] on a device, as `NormLaunch.total`, for dense tensors of any float dtypes and devices."""
    kinds = grouped(tensors, lambda tensor: (tensor.device, tensor.dtype))
    result = torch.zeros(2, dtype=torch.float32, device=device)
    for (where, dtype), members in kinds.items():
        with on_device(where):
            inputs = StepInputs(where, len(members))
            send(np.array([member.data_ptr() for member in members], dtype=np.int64), inputs.grads)
            total = torch.empty((1, 2), dtype=number_dtype(where), device=where)
            NormLaunch(dtype, inputs, [(i, one.numel()) for i, one in enumerate(members)], total).launch()
            result += total[0].to(device, torch.float32, non_blocking=True)
    return result
