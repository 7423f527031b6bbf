"""The words of a step where more than a factor decides them: norms to clip to, and what may have the step skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..kernels import words as kernels
from .batch import Scaling
from .buckets import BucketMember, grouped
from .devices import number_dtype, on_device
from .inputs import SKIP, StepInputs
from .launch import Launch
from .norms import NormLaunch

Norms = dict[torch.device, torch.Tensor]  # where steps leave the norm of all gradients, 0-d float32


def kind_of(scaling: Scaling) -> tuple[bool, bool]:
    """What the launches depend on."""
    return scaling.guarded, scaling.max_norm is not None


class StepWords:
    """Computes the words on every device from what was given, without the host.

    Where a `scaling` of this kind is measured, the norm of all gradients is taken first, over all devices, and left in
    `norms`; where it is guarded, a NaN or infinity in any gradient on any device has the step skipped on all of them.
    """

    def __init__(
        self,
        members: Sequence[BucketMember],
        inputs: Mapping[torch.device, StepInputs],
        norms: Norms,
        *,
        scaling: Scaling,
    ) -> None:
        measured, self.kind, self.inputs = scaling.measured, kind_of(scaling), inputs
        kinds = grouped(members if measured else (), lambda one: (one.entry.param.device, one.grad_dtype))
        self.totals = {
            device: torch.zeros((len(kinds), 2), dtype=number_dtype(device), device=device) for device in inputs
        }
        self.norms = []
        for index, ((device, dtype), own) in enumerate(kinds.items()):
            with on_device(device):
                placed = [(member.place, member.entry.param.numel()) for member in own]
                total = self.totals[device][index : index + 1]
                # The words of such a step change; the norm's launches are never skipped.
                self.norms.append((device, index, NormLaunch(dtype, inputs[device].unguarded(), placed, total)))
        self.launches = {}
        for device, own_inputs in inputs.items():
            with on_device(device):
                norm = norms.get(device)
                if norm is None:
                    norm = torch.zeros((), dtype=torch.float32, device=device)
                    norms.update({device: norm} if measured else {})
                tensors = own_inputs.given, self.totals[device], own_inputs.words, norm
                constants = {"COUNT": len(kinds), "GUARDED": scaling.guarded, "CLIPPED": scaling.max_norm is not None}
                self.launches[device] = Launch(kernels.words_kernel, 1, *tensors, **constants)

    def launch(self) -> None:
        """Norms, then the words; nothing waits."""
        for device, index, norm in self.norms:
            with on_device(device):
                norm.launch()
            for other, totals in self.totals.items():
                if other != device:
                    totals[index : index + 1].copy_(norm.total, non_blocking=True)
        for device, one in self.launches.items():
            with on_device(device):
                one.run()

    def skips(self) -> bool:
        """Whether the step is skipped; waits for the device."""
        return any(bool(inputs.words[SKIP] != 0) for inputs in self.inputs.values())
