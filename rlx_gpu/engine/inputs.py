"""What every launch of a step on one device reads, at addresses that stay from step to step."""

from __future__ import annotations

from typing import Any

import torch

from ..kernels.spec import ROW_WIDTH
from .devices import number_dtype
from .tables import upload

SCALE, SKIP = 0, 1  # the words


class StepInputs:
    """`words`, `grads` and `rows`, as `rlx_gpu.kernels.elementwise` has them, of `count` members on one device."""

    def __init__(self, device: torch.device, count: int) -> None:
        self.device = device
        dtype = number_dtype(device)
        self.words = upload(torch.tensor([1.0, 0.0], dtype=dtype).numpy(), device)
        self.grads = torch.zeros(count, dtype=torch.int64, device=device)
        self.rows = torch.zeros((count, ROW_WIDTH), dtype=dtype, device=device)
        self._scale: Any = 1.0
        self._factor = self.words[SCALE : SCALE + 1]

    def set_scale(self, scale: float | torch.Tensor) -> None:
        """The factor on every gradient of the next step: a number, or a tensor of one element that is not read here."""
        if isinstance(scale, torch.Tensor):
            self._factor.copy_(scale.detach().reshape(1), non_blocking=True)
            self._scale = None
        elif scale != self._scale:
            self._factor.fill_(scale)
            self._scale = scale

    def unguarded(self) -> StepInputs:
        """The same gradients for launches that are never skipped and take them unscaled."""
        inputs = StepInputs(self.device, 0)
        inputs.grads, inputs.rows = self.grads, self.rows
        return inputs
