"""Sums of squares over tensors of any formats and devices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..kernels import reductions
from .buckets import grouped
from .devices import number_dtype, on_device
from .elementwise import Parts, RuleLaunch
from .inputs import StepInputs
from .state import DTYPE_NAMES
from .sums import SumLaunch
from .tables import send


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
        self.total = total
        self.sum = SumLaunch(self.rule.sums, np.array([[0, len(members)]], dtype=np.int64), total)

    def launch(self) -> None:
        """Fills `total`."""
        self.rule.launch()
        self.sum.run()


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
