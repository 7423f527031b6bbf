"""The launches that compute rows of scalars, from step counts and hyperparameters that lie on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..kernels import rows
from .batch import Settings
from .buckets import BucketMember, Spec
from .devices import on_device
from .inputs import StepInputs
from .launch import Launch
from .state import STEP
from .tables import send, upload


class RowLaunch:
    """The rows of all members of one device under one rule; with `advance`, their steps are counted."""

    def __init__(self, spec: Spec, inputs: StepInputs, members: Sequence[BucketMember], *, advance: bool) -> None:
        self.spec, self.label = spec, f"while computing the row of rule {spec.name!r}"
        self.groups = sorted({member.entry.group for member in members})
        scales = np.array([member.entry.scale for member in members], dtype=np.float64).view(np.int64)
        place = {group: index for index, group in enumerate(self.groups)}
        columns = [[member.place for member in members], [place[member.entry.group] for member in members]]
        counters = [[member.state[slot].data_ptr() for member in members] for slot in (STEP, *spec.counters)]
        table = upload(np.array([*columns, scales, *counters], dtype=np.int64).T, inputs.device)
        self.known: Sequence[Settings | None] = [None] * len(self.groups)
        self.live: list[tuple[torch.Tensor, torch.Tensor]] = []  # places of learning rates, and the tensors they are in
        hypers = len(spec.row.hypers(members[0].settings.hyper))
        self.hypers = torch.empty((len(self.groups), hypers + 1), dtype=torch.float64, device=inputs.device)
        programs, constants = -(-len(members) // rows.BLOCK), rows.constants(spec, hypers, advance)
        pointers = table, inputs.grads, self.hypers, inputs.words, inputs.rows
        try:
            with on_device(inputs.device):
                self.kernel = Launch(rows.rows_kernel, programs, *pointers, len(members), **constants)
        except Exception as error:
            error.add_note(self.label)
            raise

    def knows(self, settings: Sequence[Settings]) -> bool:
        """Whether these are the settings that were sent last."""
        return all(settings[group] is known for group, known in zip(self.groups, self.known, strict=True))

    def send(self, settings: Sequence[Settings]) -> None:
        """Sends the hyperparameters of groups that have changed, and copies the learning rates that tensors hold."""
        if not self.knows(settings):
            current = [settings[group] for group in self.groups]
            numbers = np.array([[*self.spec.row.hypers(one.hyper), 0.0] for one in current])
            numbers.view(np.int64)[:, -1] = [one.storage.seed for one in current]  # its bits
            send(numbers, self.hypers)
            self.known = current
            held = [(index, one.lr) for index, one in enumerate(current) if one.lr is not None]
            self.live = [(self.hypers[index, :1], lr) for index, lr in held]
        for target, lr in self.live:
            target.copy_(lr.detach().reshape(1), non_blocking=True)

    def launch(self) -> None:
        """Computes the rows, unless the step is skipped."""
        try:
            self.kernel.run()
        except Exception as error:
            error.add_note(self.label)
            raise
