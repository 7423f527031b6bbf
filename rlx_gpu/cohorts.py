"""Which parameters share a row of hyperparameters, and what the host counts for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .batch import Entry, Settings
from .launch_tables import hyper_rows, upload
from .matrix.fused import FusedRules
from .matrix.turn import Turn
from .table import Algorithm

if TYPE_CHECKING:
    from .launch import Bucket

Array = np.ndarray[Any, Any]


@dataclass
class Cohort:
    """Parameters of one bucket that always share a row of hyperparameters.

    `history` maps a number of updates to the host-side counters after them; the device may be a few updates behind.
    """

    group: int
    scale: float
    step: int
    history: dict[int, dict[str, float]]


@dataclass
class Roster:
    """One bucket's members (positions in the batch), and the row of hyperparameters that each reads."""

    bucket: Bucket
    slots: tuple[str, ...]
    members: list[int]
    cohorts: list[Cohort] = field(default_factory=list)
    cohort_of: list[int] = field(default_factory=list)
    pointers: Any = None  # int64 [members, streams]

    def regroup(self, entries: Sequence[Entry], steps: Array, counters: Mapping[str, Array]) -> None:
        """Finds which members share a row from now on: same group, scale, step and counters."""
        found: dict[Any, int] = {}
        self.cohorts, self.cohort_of = [], []
        for i in self.members:
            entry, step = entries[i], int(steps[i])
            own = {slot: float(array[i]) for slot, array in counters.items() if not np.isnan(array[i])}
            key = (entry.group, entry.scale, step, tuple(own.items()))
            if key not in found:
                found[key] = len(self.cohorts)
                self.cohorts.append(Cohort(entry.group, entry.scale, step, {step: own}))
            self.cohort_of.append(found[key])

    def rows(self, algorithm: Algorithm, settings: Sequence[Settings], pending: int, width: int) -> torch.Tensor:
        """The hyperparameters of this step, on the device.

        A cohort's first row assumes that no pending step was skipped, the next that one was, and so on up to `width`.
        """
        spec = self.bucket.key.spec
        rows: list[tuple[float, ...]] = []
        steps: list[int] = []
        seeds: list[int] = []
        for cohort in self.cohorts:
            hyper = algorithm.scaled(settings[cohort.group].hyper, cohort.scale)
            own = []
            for step in range(cohort.step + 1 - pending, cohort.step + 2):
                counters = dict(cohort.history.get(step - 1, {}))
                own.append(spec.scalars(hyper, step, counters))
                cohort.history[step] = counters
            rows += [*reversed(own), *own[:1] * (width - len(own))]
            steps += [cohort.step + 1 - offset for offset in range(width)]
            seeds += [settings[cohort.group].storage.seed] * width
        return upload(hyper_rows(rows, steps, seeds), self.bucket.key.device)

    def advance(self, by: int, width: int, counters: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
        """Counts updates, and writes the counters of the members to both tables."""
        for index, cohort in enumerate(self.cohorts):
            cohort.step += by
            for old in [step for step in cohort.history if step < cohort.step - width]:
                del cohort.history[old]
            for slot, value in cohort.history[cohort.step].items():
                own = [i for i, of in zip(self.members, self.cohort_of, strict=True) if of == index]
                counters[slot][own] = expected[slot][own] = value


@dataclass(frozen=True)
class Clock:
    """What the host knows of a roster at the step whose rows were just made; only matrix routines ask."""

    roster: Roster
    settings: Sequence[Settings]

    @property
    def hyper(self) -> Mapping[str, Any]:
        """The hyperparameters of the param group that all members belong to."""
        return self.settings[self.roster.cohorts[0].group].hyper

    def turn(self, members: Sequence[int], device: torch.device, fused: FusedRules) -> Turn:
        """The turn of these members, given by their places in the roster; a member may come several times."""
        cohorts = [self.roster.cohorts[self.roster.cohort_of[member]] for member in members]
        slots = cohorts[0].history[cohorts[0].step]
        before = {slot: tuple(cohort.history[cohort.step][slot] for cohort in cohorts) for slot in slots}
        after = {slot: tuple(cohort.history[cohort.step + 1][slot] for cohort in cohorts) for slot in slots}
        return Turn(tuple(cohort.step + 1 for cohort in cohorts), before, after, device, fused)
