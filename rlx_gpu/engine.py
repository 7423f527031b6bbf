"""The engine: takes parameters, gradients, state and hyperparameters, and steps them all in as few launches as there
are combinations of device, rule and storage. Both faces are built on it; it knows neither.

In the steady state a step compares addresses, writes a few rows of hyperparameters and launches.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import Any

import torch

from .batch import Batch, Settings
from .checks import check_grad_scale
from .cohorts import Clock, Roster
from .fallback import reference_hessian, reference_step, to_numpy
from .plan import Plan
from .reference.norms import has_nonfinite
from .state import leave_batch
from .table import Algorithm

MOST_PLANS = 2**16


class Engine:
    """Steps batches of parameters with one algorithm.

    Args:
        algorithm: the optimizer.
        skip_nonfinite: whether a NaN or infinity in any gradient of a batch turns its whole step into a no-op, on the
            device: parameters, state and step counts stay.
    """

    def __init__(self, algorithm: Algorithm, *, skip_nonfinite: bool = False) -> None:
        self.algorithm = algorithm
        self.skip_nonfinite = skip_nonfinite
        self._plans: dict[Hashable, Plan] = {}
        self._plan_of: dict[int, Hashable] = {}  # by the id of a state, which its plan keeps alive

    def step(self, key: Hashable, batch: Batch, grad_scale: float | torch.Tensor = 1.0) -> None:
        """Updates every parameter of the batch in place, in stream order.

        Args:
            key: names the set of parameters, so that its plan is found again.
            batch: parameters, gradients, states (completed in place) and settings.
            grad_scale: factor on every gradient: a number, or a tensor of one element, read on the device.

        Raises:
            TypeError, ValueError: as `rlx_gpu.checks`; nothing has been changed then.
        """
        check_grad_scale(grad_scale)
        plan = self._plan(key, batch)
        plan.collect()
        grads = copied(plan, batch.grads)
        for control in plan.controls.values():
            control.set_scale(grad_scale)
        if self.skip_nonfinite and not self._guard(plan, grads):
            return
        for roster in plan.rosters:
            self._step_roster(plan, roster, batch.settings)
        scale = float(grad_scale) if plan.reference else 1.0
        for i in plan.reference:
            entry, settings = batch.entries[i], batch.settings[batch.entries[i].group]
            hyper = self.algorithm.scaled(settings.hyper, entry.scale)
            storage, state = settings.storage, batch.states[i]
            reference_step(self.algorithm, entry.param, grads[i], state, hyper, storage, entry.origin, scale)
        plan.advance(1)
        if self.skip_nonfinite and plan.controls and not plan.host_decides:
            plan.report()
            plan.collect()

    def update_hessian(self, batch: Batch) -> None:
        """Mixes estimates of the Hessian's diagonal, given as the batch's gradients, into the states.

        With `skip_nonfinite`, estimates of which any is not finite are left out altogether.
        """
        self.settle()
        plan = Plan(self.algorithm, batch, self._select_hessian, guarded=self.skip_nonfinite)
        estimates = copied(plan, batch.grads)
        if self.skip_nonfinite and not self._guard(plan, estimates):
            return
        for i in plan.reference:
            hyper = batch.settings[batch.entries[i].group].hyper
            reference_hessian(self.algorithm, estimates[i], batch.states[i], hyper)
        for roster in plan.rosters:
            self._step_roster(plan, roster, batch.settings)

    def settle(self) -> None:
        """Waits until the host knows the outcome of every step, so that step counts are exact."""
        if not self.skip_nonfinite:
            return
        for plan in self._plans.values():
            plan.collect(wait=True)

    def forget(self) -> None:
        """Drops every plan: states were replaced."""
        self.settle()
        self._plans.clear()
        self._plan_of.clear()

    def _plan(self, key: Hashable, batch: Batch) -> Plan:
        plan = self._plans.get(key)
        if plan is None or not plan.fits(batch):
            plan = None  # its tables and batches are freed before new ones are made
            self._retire(key, batch)
            plan = Plan(self.algorithm, batch, self._select, guarded=self.skip_nonfinite)
            if len(self._plans) >= MOST_PLANS:
                self._drop(next(iter(self._plans)))
            self._plans[key] = plan
            self._plan_of.update(dict.fromkeys(map(id, plan.states), key))
        return plan

    def _retire(self, key: Hashable, batch: Batch) -> None:
        """Drops the plans that step any parameter of a batch for which a new one is made.

        They would not fit again.
        """
        self.settle()
        stepped = set(map(id, batch.states))
        for old in {key} | {self._plan_of[state] for state in stepped & self._plan_of.keys()}:
            self._drop(old, stepped)

    def _drop(self, key: Hashable, stepped: Collection[int] = ()) -> None:
        """Drops a plan, if there is one; states whose ids are not among these leave the batches it made."""
        plan = self._plans.pop(key, None)
        for state in plan.states if plan else ():
            self._plan_of.pop(id(state), None)
            if id(state) not in stepped:
                leave_batch(state)

    def _select(self, settings: Settings, param: torch.Tensor) -> Any:
        return self.algorithm.rules.select(settings.hyper, param.ndim)

    def _select_hessian(self, settings: Settings, param: torch.Tensor) -> Any:
        return self.algorithm.rules.HESSIAN

    def _step_roster(self, plan: Plan, roster: Roster, settings: Sequence[Settings]) -> None:
        from .launch import on_device

        device = roster.bucket.key.device
        with on_device(device):
            roster.bucket.step(plan.rows(roster, settings), plan.controls[device].words, Clock(roster, settings))

    def _guard(self, plan: Plan, grads: Sequence[torch.Tensor]) -> bool:
        """Sets the skip flag on every device; False if the host already knows that nothing is to be done."""
        if has_nonfinite([to_numpy(grads[i]) for i in plan.reference]):
            return False
        if not plan.controls:
            return True
        from .launch import guard, on_device, total_norm

        for device, control in plan.controls.items():
            with on_device(device):
                sums = total_norm(plan.norms, device)
                if plan.host_decides:
                    if bool(sums[1] > 0):
                        return False
                else:
                    guard(sums, control.words, control.skipped, plan.ledger.known)
        return True


def copied(plan: Plan, grads: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """The gradients, those of another memory order than their parameter copied into its order."""
    for i, buffer in plan.copies.items():
        buffer.copy_(grads[i])
    return [plan.copies.get(i, grad) for i, grad in enumerate(grads)] if plan.copies else grads
