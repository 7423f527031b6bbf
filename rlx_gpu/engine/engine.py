"""The engine, on which both faces are built: it finds or makes the plan for a batch, and steps it.

In the steady state a step compares addresses and launches: nothing is uploaded, recorded or read back.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from ..reference.trait import MAX_GRAD_NORM, SKIP_NONFINITE
from ..table import Algorithm
from . import capture
from .batch import Batch, Scaling, Settings
from .buckets import Step
from .capture import CaptureError, refuse_capture
from .captured import Homes
from .checks import checked_scale
from .plan import SCHEDULED, Plan
from .processes import check_process
from .state import State, leave_batch
from .words import Norms

LEAST_SHARE = 1 / 16  # of a plan's elements that a batch must have to be stepped by it, the others left out


class Engine:
    """Steps batches of parameters with one algorithm.

    With `skip_nonfinite` a NaN or infinity in any gradient of a batch turns its whole step into a no-op, on the device:
    parameters, state and step counts stay. With `max_grad_norm` the gradients of a batch are scaled, there, to a norm
    of at most so much. Threads take turns.
    """

    def __init__(
        self, algorithm: Algorithm, *, skip_nonfinite: bool = False, max_grad_norm: float | None = None
    ) -> None:
        self.algorithm = algorithm
        self.skip_nonfinite: bool = SKIP_NONFINITE.check(skip_nonfinite)
        self.max_grad_norm: float | None = MAX_GRAD_NORM.check(max_grad_norm)
        self.lock = threading.RLock()
        self.norms: Norms = {}
        self.steps, self.hessians = Plans(algorithm, self.norms), Plans(algorithm, {}, advance=False)

    @property
    def grad_norm(self) -> torch.Tensor | None:
        """The norm of all gradients of the last step that measured it, 0-d float32, scaled but not clipped, on a device
        of theirs; NaN if one held a NaN or infinity. Later steps, and replays of captured ones, write into it.
        """
        return next(iter(self.norms.values()), None)

    def step(
        self,
        batch: Batch,
        grad_scale: float | torch.Tensor = 1.0,
        divisor: float | torch.Tensor | None = None,
        found_inf: float | torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Updates every parameter of the batch that has a gradient in place, in stream order, and returns those.

        Tensors that scale, as `Scaling` has them, are read on the device. Errors are those of `rlx_gpu.engine.checks`;
        nothing has been changed then.
        """
        factor = checked_scale(grad_scale)
        by = None if divisor is None else checked_scale(divisor, "the scaler's grad_scale")
        found = None if found_inf is None else checked_scale(found_inf, "the scaler's found_inf")
        with self.lock:
            return self.steps.run(batch, self._scaling(factor, by, found))

    def update_hessian(self, batch: Batch) -> None:
        """Mixes estimates of the Hessian's diagonal, given as the batch's gradients, into the states."""
        with self.lock:
            self.hessians.run(batch, Scaling(guarded=self.skip_nonfinite))

    def send_hyperparameters(self, settings: Sequence[Settings], homes: Homes | None = None) -> None:
        """Sends what has changed to the devices, for replays of captured steps; no step is taken.

        Raises:
            ValueError: what they cannot follow, by name; nothing has been sent then.
        """
        refuse_capture("sending hyperparameters", "do it before the capture, or between replays")
        with self.lock:
            self.check_replays(settings, homes)
            for plans, scaling in self._kinds():
                for plan in plans.reading():
                    if len(plan.settings) <= len(settings):  # another is replaced at the next step
                        plan.send(settings, scaling)

    def check_replays(self, settings: Sequence[Settings], homes: Homes | None = None) -> None:
        """Refuses what replays of captured steps could not follow, by a ValueError: settings, and `homes` of parameters
        where these may change.
        """
        for plans, scaling in self._kinds():
            for plan in plans.pinned:
                plan.check_replays(settings, scaling, homes)

    def forget_captures(self) -> None:
        """Lets go of what captured steps read: none will be replayed."""
        with self.lock:
            for plan in [plan for plans, _ in self._kinds() for plan in plans.pinned]:
                plan.forget_captures()
            for plans, _ in self._kinds():
                plans.pinned.clear()

    def captured_states(self) -> list[State]:
        """The states that captured steps read and write, where they lie."""
        plans = [plan for kind, _ in self._kinds() for plan in kind.pinned]
        return [plan.states[i] for plan in plans for i in plan.members]

    def forget(self) -> None:
        """Drops every plan, but for what captured steps read: states were replaced."""
        for plans, _ in self._kinds():
            plans.forget()

    def _scaling(self, factor: float | torch.Tensor = 1.0, divisor: Any = None, found_inf: Any = None) -> Scaling:
        """What scales a step, and what may have it skipped."""
        return Scaling(factor, divisor, found_inf, self.max_grad_norm, self.skip_nonfinite)

    def _kinds(self) -> tuple[tuple[Plans, Scaling], ...]:
        """The plans of either kind of step, and how it is scaled."""
        return (self.steps, self._scaling()), (self.hessians, Scaling(guarded=self.skip_nonfinite))


class Plans:
    """The plans of one kind of step, `advance`ing counts or not; a parameter has at most one.

    Those of captured steps stay, `pinned`, when others take their place.
    """

    def __init__(self, algorithm: Algorithm, norms: Norms, *, advance: bool = True) -> None:
        self.algorithm, self.norms, self.advance = algorithm, norms, advance
        self.pinned: list[Plan] = []
        self._of: dict[int, Plan] = {}  # by the ids of states and of parameters, which their plan keeps alive

    def __iter__(self) -> Any:
        return iter(dict.fromkeys(self._of.values()))

    def reading(self) -> list[Plan]:
        """All plans, those in use and those of captured steps."""
        return list(dict.fromkeys([*self, *self.pinned]))

    def forget(self) -> None:
        """Drops the plans in use."""
        self._of.clear()

    def run(self, batch: Batch, scaling: Scaling) -> list[torch.Tensor]:
        """One step of the batch, by the plan that its parameters have or by a new one; the parameters stepped."""
        check_process()
        device = capture.capturing()
        plan = next((self._of.get(id(state)) for state in batch.states if state), None)
        if plan is not None and batch.entries is not plan.entries and batch.entries != plan.entries:
            batch = spread(plan, batch) or batch
            if batch.entries is not plan.entries:
                plan = None  # its tables and batches are freed before new ones are made
        if device is not None:
            self._check_capture(plan, batch, scaling, device)
        elif plan is None or not plan.fits(batch):
            plan = None
            plan = self._new(batch)
        assert plan is not None, "found, or made"
        step = Step(batch.grads, plan.grads.present, batch.settings, scaling)
        if device is not None:
            plan.capture(step)
            self.pinned += [plan] if plan not in self.pinned else []
        elif plan.grads.places:
            plan.step(step)
        return plan.grads.stepped

    def _check_capture(self, plan: Plan | None, batch: Batch, scaling: Scaling, device: torch.device) -> None:
        """Refuses a step that cannot be captured on this device, by a CaptureError."""
        if plan is not None:
            plan.check_capture(batch, scaling, device)
        if plan is None or not plan.fits(batch):
            hypers = [(batch.settings[one.group].hyper, one.param.ndim) for one in batch.entries]
            if any(self.algorithm.select(*each).scheduled for each in hypers):
                raise CaptureError(SCHEDULED.format(self.algorithm.name))
            raise CaptureError(
                f"{self.algorithm.name}: a first step, or one unlike the last in parameters, state, hyperparameters or "
                "formats of gradients, cannot be captured in a CUDA graph: take one like it before the capture"
            )

    def _new(self, batch: Batch) -> Plan:
        """A plan in the place of those that step any parameter of the batch."""
        self._drop({id(one) for one in (*batch.states, *(entry.param for entry in batch.entries)) if one is not None})
        with torch.inference_mode(False), torch.no_grad():  # what it makes serves steps outside of that mode, too
            plan = Plan(self.algorithm, batch, self.norms, advance=self.advance)
        self._of.update({id(one): plan for i in plan.members for one in (plan.states[i], plan.entries[i].param)})
        return plan

    def _drop(self, stepped: set[int]) -> None:
        """Drops the plans that hold any of these, by id; states that are not among them leave the batches it made,
        unless captured steps read them there.
        """
        read = {id(plan.states[i]) for plan in self.pinned for i in plan.members}
        for plan in {self._of[one] for one in stepped & self._of.keys()}:
            for state, entry in ((plan.states[i], plan.entries[i]) for i in plan.members):
                self._of.pop(id(state), None)
                self._of.pop(id(entry.param), None)
                if id(state) not in stepped | read:
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
