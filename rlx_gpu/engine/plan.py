"""A plan: everything about a set of parameters that stays the same from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch

from ..kernels.spec import FactoredSpec, RuleSpec
from ..table import Algorithm
from .batch import Batch, Settings
from .buckets import Bucket, BucketKey, BucketMember, Step, bucket_key, grouped
from .devices import on_device
from .elementwise import ElementwiseBucket
from .factored import FactoredBucket
from .inputs import StepInputs
from .members import admit
from .norms import Guard
from .rows import RowLaunch
from .state import STEP, Layout
from .tables import send
from .watch import GradWatch, TensorWatch

BUCKETS: dict[type, Any] = {RuleSpec: ElementwiseBucket, FactoredSpec: FactoredBucket}  # matrices have their own


class Plan:
    """The buckets and tables for a set of parameters, of which each step moves those that have a gradient.

    Making it checks every tensor, then completes states; it raises before anything is written. Unless its steps
    `advance` counts, they mix estimates of the Hessian into the state.
    """

    def __init__(self, algorithm: Algorithm, batch: Batch, *, guarded: bool, advance: bool) -> None:
        self.algorithm, self.entries, self.guarded = algorithm, batch.entries, guarded
        self.states: Sequence[Any] = batch.states
        self.held = self.states  # the same list, as long as its owner keeps it, has the same states in it
        self.settings = list(batch.settings)
        layouts = admit(algorithm, batch)
        self.members = list(layouts)
        self.here = grouped(self.members, lambda i: self.entries[i].param.device)
        self.structures = list(map(self._structure, self.settings))
        self.inputs = {device: StepInputs(device, len(members)) for device, members in self.here.items()}
        self.rows: dict[torch.device, list[RowLaunch]] = {device: [] for device in self.here}
        self.buckets: dict[torch.device, list[Bucket]] = {device: [] for device in self.here}
        self.guard: Guard | None = None
        self.shaped = False
        self._place(layouts, advance=advance)
        self.waits = any(bucket.waits for buckets in self.buckets.values() for bucket in buckets)
        params = [self.entries[i].param for i in self.members]
        states: list[Any] = [self.states[i] for i in self.members]
        slots = {slot for own in layouts.values() for slot in (*own.scalars, *own.tensors)}
        numbers = STEP, *algorithm.scalar_slots
        self.tensors = TensorWatch(params, states, slots, numbers, shaped=self.shaped)
        self.grads = GradWatch(self.entries, self.members)
        self._follows(batch.grads)

    def fits(self, batch: Batch) -> bool:
        """Whether this plan serves the batch, whose entries are its own; tables follow gradients that have moved."""
        if batch.settings != self.settings:
            if list(map(self._structure, batch.settings)) != self.structures:
                return False
            self.settings = list(batch.settings)
        if batch.states is not self.held:
            if not all(map(is_, batch.states, self.states)):  # each as long as the entries
                return False
            self.held = batch.states
        return self.tensors.holds() and self._follows(batch.grads)

    def step(self, step: Step) -> None:
        """One update of every parameter that has a gradient, unless it is skipped."""
        self.grads.copy(step.grads)
        for device, inputs in self.inputs.items():
            with on_device(device):
                inputs.set_scale(step.grad_scale)
                for row in self.rows[device]:
                    row.send(step.settings)
        if self._skips():
            return
        for device, buckets in self.buckets.items():
            with on_device(device):
                for row in self.rows[device]:
                    row.launch()
                for bucket in buckets:
                    bucket.step(step)

    def _follows(self, grads: Sequence[torch.Tensor | None]) -> bool:
        """Whether this plan serves these gradients; their addresses are sent if they have moved."""
        fits, moved = self.grads.follows(grads)
        if moved:
            for device, inputs in self.inputs.items():
                send(self.grads.pointers[self.here[device]], inputs.grads)
        return fits

    def _skips(self) -> bool:
        """Has the devices skip a step with a NaN or infinity; true only if the host has to know, and it is skipped."""
        if self.guard is None:
            return False
        self.guard.launch()
        return bool(self.waits and self.guard.skips())

    def _place(self, layouts: dict[int, Layout], *, advance: bool) -> None:
        """Sorts the members into buckets, and makes the launches before them."""
        own = [member for places in self.here.values() for member in self._located(places)]
        keys: dict[BucketMember, BucketKey] = {}
        for one in own:
            hyper, ndim = one.settings.hyper, one.entry.param.ndim
            chosen = self.algorithm.select(hyper, ndim) if advance else self.algorithm.rules.HESSIAN
            keys[one] = bucket_key(chosen, one.entry, one.settings, layouts[one.index])
        self.shaped = any(key.spec.shaped for key in keys.values())
        for (device, spec), members in grouped(own, lambda one: (keys[one].device, keys[one].spec)).items():
            row = RowLaunch(spec, self.inputs[device], members, advance=advance)
            self.rows[device].append(row)
        # Of nothing, means and factors are undefined.
        some = [one for one in own if isinstance(keys[one].spec, RuleSpec) or one.entry.param.numel()]
        for key, members in grouped(some, keys.__getitem__).items():
            driver = BUCKETS.get(type(key.spec)) or self.algorithm.matrix_bucket
            with on_device(key.device):
                self.buckets[key.device].append(driver(key, members, self.inputs[key.device]))
        if self.guarded:
            self.guard = Guard(own, self.inputs)

    def _structure(self, settings: Settings) -> Any:
        """What decides which buffers and which rules a param group uses."""
        hyper, algorithm = settings.hyper, self.algorithm
        rules = [algorithm.select(hyper, ndim) for ndim in (1, 2)]
        choices = [hyper[name] for name in algorithm.structural]
        return settings.storage, choices, rules, list(algorithm.reference.init_state((1, 1), **hyper))

    def _located(self, indices: Sequence[int]) -> list[BucketMember]:
        """The members with these places in the plan, which are all of a device."""
        entries = [self.entries[i] for i in indices]
        located = enumerate(zip(indices, entries, strict=True))
        return [BucketMember(i, at, one, self.states[i], self.settings[one.group]) for at, (i, one) in located]
