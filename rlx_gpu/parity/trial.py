"""A trial: one optimizer in one storage, the kernels and the reference side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .. import reference
from ..engine import launch
from ..engine.devices import on_host
from ..engine.state import DTYPE_NAMES, STEP
from ..trait import origin
from .cases import Array, Case, gradient, normal, places, tensor_of
from .intervals import Interval, distance, nearest, stochastic
from .outcome import Error, Outcome
from .storages import Formats
from .tolerances import JUMP, NUDGE, tolerance
from .variants import Variant, alone

SEED = 2**33 + 1  # of stochastic rounding: both words of the key count
EARLY, LATE = 2, 1000  # the first steps, then those from LATE on: RAdam's second branch, bias corrections near 1
Arrays = dict[str, Array]  # by "param/<name>", "<slot>/<name>" and "step/<name>"


class Trial:
    """Steps an optimizer of `rlx_gpu` on tensors, and asks the reference what every step should have done.

    Args:
        cases: the parameters, all stepped in one batch.
        options: of both constructors.

    Raises:
        ValueError: the rule and the reference keep different slots.
    """

    def __init__(
        self, variant: Variant, formats: Formats, cases: Sequence[Case], device: torch.device, **options: Any
    ) -> None:
        for case in cases:
            variant.check_slots(case.shape)
        self.variant, self.formats, self.cases, self.device = variant, formats, cases, device
        self.options = options
        self.rng = np.random.default_rng(23)
        stored: dict[str, Any] = {"state_dtype": formats.state, "rounding": formats.rounding, "seed": SEED}
        self.kernels = variant.make(device=device, **stored, **options)
        self.params = {case.name: self.tensor(self.start(case), formats.param, case.layout) for case in cases}
        self.tolerances = {case.name: tolerance(variant.spec(len(case.shape)), formats) for case in cases}
        self.outcome = Outcome()
        self.t = 0
        if steps := max((row.warm for row in self.tolerances.values()), default=0):
            self._warm_up(steps)

    def step(self) -> None:
        """One iteration, and what is wrong with it."""
        self.advance()
        self.compare()

    def advance(self, cases: Sequence[Case] | None = None) -> None:
        """One update of these parameters, all unless given, and of their Hessian where the optimizer keeps one."""
        self.t += 1
        self.stepped = self.cases if cases is None else cases
        self.grads = {case.name: self.gradient(case) for case in self.stepped}
        takes_estimates = hasattr(self.kernels, "update_hessian")
        self.estimates = {case.name: self.estimate(case) for case in self.stepped if takes_estimates}
        counter = launch.host_runs if on_host(self.device) else launch.launches
        self.before, launched = self.stored(), counter.total()
        self._step_kernels()
        launched = counter.total() - launched
        self.outcome.launches += launched
        if not launched:
            self.outcome.fail(self.t, "the driver of these tensors did not run")
        self.after, self.wanted = self.stored(), self.expected(self.grads)

    def compare(self) -> None:
        """Takes note of the error of every array after a step."""
        if differing := alone("the kernels' side", self.after, "the reference", self.wanted):
            self.outcome.fail(self.t, differing)
        errors = self._errors()
        if not all(error.passed for error in errors.values()):
            errors = self._errors(self.spread())
        for key, error in errors.items():
            self.outcome.add(self.t, key.partition("/")[0], error)

    def count_from(self, step: int) -> None:
        """Makes the kernels go on as if after so many steps; the reference starts from their numbers anyway."""
        state = self.kernels.state_dict()
        self.kernels.load_state_dict(state | {key: step for key in state if key.startswith(f"{STEP}/")})
        self.t = step

    def start(self, case: Case) -> Array:
        """A parameter before the first step."""
        return normal(case, self.rng, self.formats.param)

    def gradient(self, case: Case) -> Array:
        """A parameter's gradient in the current step."""
        return gradient(case, self.rng, self.formats.grad, self.t)

    def estimate(self, case: Case) -> Array:
        """An estimate of the diagonal of a parameter's Hessian, positive and negative."""
        return normal(case, self.rng, self.formats.grad, 20.0, mean=8.0)

    def tensor(self, values: Array, dtype: str, layout: str) -> torch.Tensor:
        """The values on the device."""
        return tensor_of(values, dtype, layout, self.device)

    def stored(self) -> Arrays:
        """What the kernels have stored, in float64."""
        params = {f"param/{name}": numpy_of(param) for name, param in self.params.items()}
        return params | numbers(self.kernels.state_dict())

    def expected(self, grads: Arrays) -> Arrays:
        """The reference's parameters and slots one step after those that the kernels had stored."""
        return self.reference_step(self.before, grads)

    def scale(self, key: str) -> float:
        """The magnitude that an array's errors are relative to: its largest, before or after the step."""
        return max(largest(arrays[key]) for arrays in (self.before, self.wanted) if key in arrays)

    def spread(self) -> Arrays:
        """How far the reference moves where every gradient moves by little more than float32 rounding."""
        up, down = (
            self.expected({name: np.asarray(grad * factor) for name, grad in self.grads.items()})
            for factor in (1.0 + NUDGE, 1.0 - NUDGE)
        )
        return {key: np.abs(up[key] - down[key]) for key in up}

    def _errors(self, spread: Arrays | None = None) -> dict[str, Error]:
        """The error of every array; a second look takes off the `spread` where that is a jump of the reference."""
        kept = self.kernels.state_dict()
        errors = {}
        for key in (key for key in self.wanted if key in self.after):
            (slot, _, name), found, values = key.partition("/"), self.after[key], self.wanted[key]
            if found.shape != values.shape:
                errors[key] = Error(name, np.inf, 0.0)
                continue
            scale = self.scale(key)
            off = distance(found, values, self._interval(slot, name, found, kept.get(key)))
            if spread is not None:
                off = np.maximum(off - np.where(spread[key] > JUMP * scale, spread[key], 0.0), 0.0)
            change = largest(values - self.before.get(key, values))
            allowed = self.tolerances[name].allowed(slot, scale, change)
            unit = scale or 1.0
            errors[key] = Error(name, largest(off) / unit, allowed / unit)
        return errors

    def _interval(self, slot: str, name: str, found: Array, kept: Any) -> Interval:
        """What the stored numbers may stand for."""
        if slot != "param":
            return nearest(found, DTYPE_NAMES[kept.dtype] if isinstance(kept, torch.Tensor) else "float64")
        if self.formats.rounding == "stochastic":
            return stochastic(found, SEED, self.t, origin(name) + places(self.params[name]))
        return nearest(found, self.formats.param)

    def _step_kernels(self) -> None:
        """The kernels' step, which must leave gradients as they are."""
        layouts = {case.name: case.grad_layout for case in self.stepped}
        grads, estimates = (
            {name: self.tensor(values, self.formats.grad, layouts[name]) for name, values in arrays.items()}
            for arrays in (self.grads, self.estimates)
        )
        with np.errstate(all="ignore"):  # interpreted, lanes beyond a tensor's end compute on zeros
            self.kernels.step_batch((name, grad.shape, self.params[name], grad) for name, grad in grads.items())
            self.kernels.end_iteration()
            for name, estimate in estimates.items():
                self.kernels.update_hessian(name, estimate)
        for name, grad in grads.items():
            if not np.array_equal(numpy_of(grad), self.grads[name], equal_nan=True):
                self.outcome.fail(self.t, f"the gradient of {name} was written")

    def reference_step(self, begin: Arrays, grads: Arrays) -> Arrays:
        """The reference's parameters and slots one step after these."""
        optimizer = self.variant.make(reference, **self.options)
        slots = {key: value for key, value in begin.items() if not key.startswith("param/")}
        counts = {key: int(value) for key, value in slots.items() if key.startswith(f"{STEP}/")}
        optimizer.load_state_dict({**self.variant.algorithm.signed, "iteration": self.t - 1, **slots, **counts})
        params = {case.name: begin[f"param/{case.name}"].copy() for case in self.cases}
        optimizer.step_batch((name, params[name].shape, params[name], grad) for name, grad in grads.items())
        optimizer.end_iteration()
        for name, estimate in self.estimates.items():
            optimizer.update_hessian(name, estimate)
        return {f"param/{name}": param for name, param in params.items()} | numbers(optimizer.state_dict())

    def _warm_up(self, steps: int) -> None:
        """Lets the reference take the first steps, and both go on from its state."""
        optimizer = self.variant.make(reference, state_dtype=self.formats.state)
        params = {name: numpy_of(param) for name, param in self.params.items()}
        for t in range(steps):
            grads = {case.name: gradient(case, self.rng, "float32", t) for case in self.cases}
            optimizer.step_batch((name, param.shape, param.copy(), grads[name]) for name, param in params.items())
            optimizer.end_iteration()
        self.kernels.load_state_dict(optimizer.state_dict())
        self.t = steps


def run_trial(variant: Variant, formats: Formats, cases: Sequence[Case], steps: int, device: torch.device) -> Outcome:
    """What a trial of so many steps finds: the first ones, then those from LATE on."""
    trial = Trial(variant, formats, cases, device)
    for step in range(steps):
        if step == EARLY:
            trial.count_from(LATE - 1)
        trial.step()
    return trial.outcome


def numbers(state: Mapping[str, Any]) -> Arrays:
    """The slots and step counts of a state dict as NumPy arrays in float64."""
    return {key: numpy_of(torch.as_tensor(value)) for key, value in state.items() if "/" in key}


def numpy_of(tensor: torch.Tensor) -> Array:
    """A contiguous float64 copy on the host."""
    array: Array = np.array(tensor.detach().double().cpu().numpy(), order="C")
    return array


def largest(x: Array) -> float:
    """The largest magnitude, 0 of nothing; NaN of NaN."""
    return float(np.abs(x).max(initial=0.0))
