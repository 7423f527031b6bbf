"""A plan: everything about a set of parameters that stays the same from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import is_
from typing import Any

import torch

from ..kernels.spec import FactoredSpec, RuleSpec
from ..table import Algorithm
from .batch import Batch, Scaling, Settings
from .buckets import Bucket, BucketKey, BucketMember, Step, bucket_key, grouped
from .capture import CaptureError
from .captured import AGAIN, Addresses, Captured, Homes
from .devices import on_device
from .elementwise import ElementwiseBucket
from .factored import FactoredBucket
from .inputs import StepInputs
from .members import admit
from .rows import RowLaunch
from .state import STEP, Layout
from .watch import GradWatch, TensorWatch
from .words import Norms, StepWords, kind_of

SCHEDULED = (
    "{}: a step cannot be captured in a CUDA graph, since which launches it makes depends on its number: capture the "
    "forward and the backward pass, and step outside"
)
BUCKETS: dict[type, Any] = {RuleSpec: ElementwiseBucket, FactoredSpec: FactoredBucket}  # matrices have their own


class Plan:
    """The buckets and tables for a set of parameters, of which each step moves those that have a gradient.

    Making it checks every tensor, completes states and compiles; it raises before a step has changed anything. Unless
    its steps `advance` counts, they mix estimates of the Hessian into the state. `norms` is where steps leave the norm
    of all gradients.
    """

    def __init__(self, algorithm: Algorithm, batch: Batch, norms: Norms, *, advance: bool) -> None:
        self.algorithm, self.entries, self.norms = algorithm, batch.entries, norms
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
        self.words: StepWords | None = None
        self.captures: list[Captured] = []
        self.moved = self.shaped = False
        self.located = [member for places in self.here.values() for member in self._located(places)]
        self._place(layouts, advance=advance)
        self.waits = any(bucket.waits for buckets in self.buckets.values() for bucket in buckets)
        params = [self.entries[i].param for i in self.members]
        states: list[Any] = [self.states[i] for i in self.members]
        slots = {slot for own in layouts.values() for slot in (*own.scalars, *own.tensors)}
        numbers = STEP, *algorithm.scalar_slots
        self.tensors = TensorWatch(params, states, slots, numbers, shaped=self.shaped)
        self.grads = GradWatch(self.entries, self.members)
        self._follows(batch.grads)
        for device, inputs in self.inputs.items():
            inputs.addresses = Addresses(len(self.here[device]), device)

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
        words = self._words(step.scaling)
        for buckets in self.buckets.values():
            for bucket in buckets:
                bucket.make_tables(step)
        always = bool(self.captures)  # what was sent last may be a replay's
        self.grads.copy(step.grads)
        for device, inputs in self.inputs.items():
            with on_device(device):
                if self.moved or always:
                    inputs.send_grads(self.grads.pointers[self.here[device]], captured=step.captured)
                inputs.take(step.scaling, computed=words is not None, always=always)
                for row in self.rows[device]:
                    row.send(step.settings)
        self.moved = False
        if words is not None:
            words.launch()
            if self.waits and step.scaling.skippable and words.skips():
                return
        for device, buckets in self.buckets.items():
            with on_device(device):
                for row in self.rows[device]:
                    row.launch()
                for bucket in buckets:
                    bucket.step(step)

    def send(self, settings: Sequence[Settings], scaling: Scaling) -> None:
        """Sends the hyperparameters that lie on the devices, without a step."""
        for device, inputs in self.inputs.items():
            with on_device(device):
                inputs.take_max_norm(scaling)
                for row in self.rows[device]:
                    row.send(settings)

    def check_capture(self, batch: Batch, scaling: Scaling, device: torch.device) -> None:
        """Refuses a step that replays would not repeat, by a CaptureError."""
        name = self.algorithm.name
        for found in self.inputs:
            if found != device:
                at = next(self.entries[i].name for i in self.here[found])
                raise CaptureError(
                    f"{name}: parameter {at!r} is on {str(found)!r}, the CUDA graph is captured on {str(device)!r}, "
                    "where alone replays step: use another optimizer for it"
                )
        if self.waits:
            raise CaptureError(SCHEDULED.format(name))
        if not self.grads.expects(batch.grads):
            raise CaptureError(
                f"{name}: not the same parameters have gradients as in the last step: take one step with these before "
                "the capture"
            )
        sent = all(row.knows(batch.settings) for rows in self.rows.values() for row in rows)
        if not (sent and self._has_words(scaling) and all(one.knows_max_norm(scaling) for one in self.inputs.values())):
            raise CaptureError(
                f"{name}: hyperparameters, max_grad_norm, skip_nonfinite or the use of a GradScaler have changed since "
                "the last step: take one like it, or call send_hyperparameters(), before the capture"
            )
        for one in (scaling.factor, scaling.divisor, scaling.found_inf, *(own.lr for own in batch.settings)):
            if isinstance(one, torch.Tensor) and one.device != device:
                raise CaptureError(
                    f"{name}: a scale, found_inf or lr is on {str(one.device)!r}, must be on {str(device)!r}"
                )

    def check_replays(self, settings: Sequence[Settings], scaling: Scaling, homes: Homes | None) -> None:
        """Refuses, by a ValueError, what replays of steps that were captured could not follow."""
        for captured in self.captures:
            captured.check(settings, scaling, homes)
        if self.captures and list(map(self._structure, settings[: len(self.structures)])) != self.structures:
            raise ValueError(f"param_groups: their values choose another rule than captured steps run; {AGAIN}")

    def forget_captures(self) -> None:
        """Lets go of what captured steps read, of which one may have been replayed last."""
        self.captures.clear()
        self.moved = True
        for inputs in self.inputs.values():
            inputs.distrust()
        for bucket in (bucket for buckets in self.buckets.values() for bucket in buckets):
            bucket.forget_captures()

    def capture(self, step: Step) -> None:
        """One step, as replays will repeat it; what it reads stays for as long as this plan.

        But for the gradients: they are as large as the model, and the caller's, as with torch's optimizers.
        """
        scaling = step.scaling
        read = scaling.factor, scaling.divisor, scaling.found_inf, *(one.lr for one in step.settings)
        own = [self.entries[i] for i in self.members]
        named = [(f"parameter {entry.name!r}", entry.param) for entry in own]
        named += [(f"param_groups[{i}]['lr']", one.lr) for i, one in enumerate(step.settings) if one.lr is not None]
        places = [(label, tensor, tensor.data_ptr()) for label, tensor in named]
        states = [self.states[i] for i in self.members]
        homes = [(entry.name, entry.param, entry.group, state) for entry, state in zip(own, states, strict=True)]
        kept = [*read, self.words, *(tensor.untyped_storage() for _, tensor in named)]
        self.captures.append(Captured(step.settings, scaling, self.algorithm.structural, places, homes, kept))
        self.step(step._replace(captured=True))

    def _words(self, scaling: Scaling) -> StepWords | None:
        """What computes the words of a step; None where the factor alone decides, and always has."""
        if not self._has_words(scaling):
            self.words = StepWords(self.located, self.inputs, self.norms, scaling=scaling)
        return self.words

    def _has_words(self, scaling: Scaling) -> bool:
        """Whether the words of such a step can be computed as those of the last were."""
        if self.words is None:
            return scaling.plain
        return self.words.kind == kind_of(scaling)

    def _follows(self, grads: Sequence[torch.Tensor | None]) -> bool:
        """Whether this plan serves these gradients; takes note if they have moved."""
        fits, moved = self.grads.follows(grads)
        self.moved |= moved
        return fits

    def _place(self, layouts: dict[int, Layout], *, advance: bool) -> None:
        """Sorts the members into buckets, and makes the launches before them."""
        own = self.located
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

    def _structure(self, settings: Settings) -> Any:
        """What decides which buffers and which rules a param group uses."""
        hyper, algorithm = settings.hyper, self.algorithm
        rules = [algorithm.select(hyper, ndim) for ndim in (1, 2)]
        choices = [hyper[name] for name in algorithm.structural]
        return replace(settings.storage, seed=0), choices, rules, list(algorithm.reference.init_state((1, 1), **hyper))

    def _located(self, indices: Sequence[int]) -> list[BucketMember]:
        """The members with these places in the plan, which are all of a device."""
        entries = [self.entries[i] for i in indices]
        located = enumerate(zip(indices, entries, strict=True))
        return [BucketMember(i, at, one, self.states[i], self.settings[one.group]) for at, (i, one) in located]
