"""The engine, on which both faces are built: it finds or makes the plan for a batch, and steps it.

In the steady state a step compares addresses and launches: nothing is uploaded, recorded or read back.
"""

from __future__ import annotations

from typing import Any

import torch

from ..table import Algorithm
from .batch import Batch
from .buckets import Step
from .checks import checked_scale
from .plan import Plan
from .processes import check_process
from .state import leave_batch

LEAST_SHARE = 1 / 16  # of a plan's elements that a batch must have to be stepped by it, the others left out


class Engine:
    """Steps batches of parameters with one algorithm.

    With `skip_nonfinite` a NaN or infinity in any gradient of a batch turns its whole step into a no-op, on the device:
    parameters, state and step counts stay.
    """

    def __init__(self, algorithm: Algorithm, *, skip_nonfinite: bool = False) -> None:
        self.algorithm, self.skip_nonfinite = algorithm, skip_nonfinite
        self.forget()

    def step(self, batch: Batch, grad_scale: float | torch.Tensor = 1.0) -> list[torch.Tensor]:
        """Updates every parameter of the batch that has a gradient in place, in stream order, and returns those.

        A `grad_scale` in a tensor is read on the device. Errors are those of `rlx_gpu.engine.checks`; nothing has been
        changed then.
        """
        return self.steps.run(batch, checked_scale(grad_scale))

    def update_hessian(self, batch: Batch) -> None:
        """Mixes estimates of the Hessian's diagonal, given as the batch's gradients, into the states."""
        self.hessians.run(batch, 1.0)

    def forget(self) -> None:
        """Drops every plan: states were replaced."""
        self.steps = Plans(self.algorithm, guarded=self.skip_nonfinite)
        self.hessians = Plans(self.algorithm, guarded=self.skip_nonfinite, advance=False)


class Plans:
    """The plans of one kind of step, `guarded` or not, `advance`ing counts or not; a parameter has at most one."""

    def __init__(self, algorithm: Algorithm, *, guarded: bool, advance: bool = True) -> None:
        self.algorithm, self.guarded, self.advance = algorithm, guarded, advance
        self._of: dict[int, Plan] = {}  # by the ids of states and of parameters, which their plan keeps alive

    def __iter__(self) -> Any:
        return iter(dict.fromkeys(self._of.values()))

    def run(self, batch: Batch, grad_scale: float | torch.Tensor) -> list[torch.Tensor]:
        """One step of the batch, by the plan that its parameters have or by a new one; the parameters stepped."""
        check_process()
        plan = next((self._of.get(id(state)) for state in batch.states if state), None)
        if plan is not None and batch.entries is not plan.entries and batch.entries != plan.entries:
            batch = spread(plan, batch) or batch
            if batch.entries is not plan.entries:
                plan = None  # its tables and batches are freed before new ones are made
        if plan is None or not plan.fits(batch):
            plan = None
            plan = self._new(batch)
        if plan.grads.places:
            plan.step(Step(batch.grads, plan.grads.present, batch.settings, grad_scale))
        return plan.grads.stepped

    def _new(self, batch: Batch) -> Plan:
        """A plan in the place of those that step any parameter of the batch."""
        self._drop({id(one) for one in (*batch.states, *(entry.param for entry in batch.entries)) if one is not None})
        with torch.inference_mode(False), torch.no_grad():  # what it makes serves steps outside of that mode, too
            plan = Plan(self.algorithm, batch, guarded=self.guarded, advance=self.advance)
        self._of.update({id(one): plan for i in plan.members for one in (plan.states[i], plan.entries[i].param)})
        return plan

    def _drop(self, stepped: set[int]) -> None:
        """Drops the plans that hold any of these, by id; states that are not among them leave the batches it made."""
        for plan in {self._of[one] for one in stepped & self._of.keys()}:
            for state, entry in ((plan.states[i], plan.entries[i]) for i in plan.members):
                self._of.pop(id(state), None)
                self._of.pop(id(entry.param), None)
                if id(state) not in stepped:
                    leave_batch(state)


def spread(plan: Plan, batch: Batch) -> Batch | None:
    """A batch of some of a plan's parameters as one of all, the others without a gradient.

    None if it has others, or so few of them that passing over the rest would cost more than a plan of their own.
    """
    places = {id(entry): i for i, entry in enumerate(plan.entries)}
    found = [places.get(id(entry)) for entry in batch.entries]
    grads: list[Any] = [None] * len(plan.entries)
    for i, grad, state in zip(found, batch.grads, batch.states, strict=True):
        if i is None or state is not plan.states[i]:
            return None
        grads[i] = grad
    own, whole = (sum(entry.param.numel() for entry in entries) for entries in (batch.entries, plan.entries))
    if own < LEAST_SHARE * whole:
        return None
    return Batch(plan.entries, grads, plan.states, batch.settings)
