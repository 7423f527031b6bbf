"""What a trial finds: the error of every array, and what is wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Error:
    """How far one array was off in one step, relative to its largest magnitude."""

    parameter: str  # its name
    error: float  # the largest of an element, beyond what the storage format rounds away
    allowed: float  # the largest that passes

    @property
    def passed(self) -> bool:
        """Whether it is small enough; NaN is not."""
        return self.error <= self.allowed

    @property
    def share(self) -> float:
        """Of what is allowed, in [0, 1] if passed; infinite for NaN."""
        if math.isnan(self.error) or not self.allowed:
            return 0.0 if self.passed else math.inf
        return self.error / self.allowed


@dataclass
class Outcome:
    """All steps of a trial."""

    # By slot ("param" is the parameter itself), the array that came closest to what is allowed, or went beyond most.
    worst: dict[str, Error] = field(default_factory=dict)
    launches: int = 0  # of kernels
    failures: list[str] = field(default_factory=list)  # a sentence each

    def add(self, step: int, slot: str, error: Error) -> None:
        """Takes note of one array."""
        if slot not in self.worst or error.share > self.worst[slot].share:
            self.worst[slot] = error
        if not error.passed:
            off = f"off by {error.error:.1e} of the largest magnitude, {error.allowed:.1e} is allowed"
            self.fail(step, f"{slot} of {error.parameter} is {off}")

    def fail(self, step: int, what: str) -> None:
        """Takes note of something wrong."""
        self.failures.append(f"step {step}: {what}")
