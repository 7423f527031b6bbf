"""What a trial finds: the error of every array, and what is wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Error:
    """How far one array was off in one step, relative to its largest magnitude.

    Args:
        parameter: its name.
        error: the largest error of an element, beyond what the storage format rounds away.
        allowed: the largest that passes.
    """

    parameter: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it is small enough; NaN is not."""
        return self.error <= self.allowed

    @property
    def share(self) -> float:
        """Of what is allowed, in [0, 1] if passed; infinite for NaN."""
        if self.passed:
            return self.error / self.allowed if self.allowed else 0.0
        return self.error / self.allowed if self.allowed and not math.isnan(self.error) else math.inf


@dataclass
class Outcome:
    """All steps of a trial.

    Args:
        worst: by slot ("param" is the parameter itself), the array that came closest to what is allowed, or went
            furthest beyond.
        launches: kernels launched.
        failures: what is wrong, a sentence each.
    """

    worst: dict[str, Error] = field(default_factory=dict)
    launches: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, step: int, slot: str, error: Error) -> None:
        """Takes note of one array."""
        if slot not in self.worst or error.share > self.worst[slot].share:
            self.worst[slot] = error
        if not error.passed:
            self.fail(
                step,
                f"{slot} of {error.parameter} is off by {error.error:.1e} of the largest magnitude,"
                f" {error.allowed:.1e} is allowed",
            )

    def fail(self, step: int, what: str) -> None:
        """Takes note of something wrong."""
        self.failures.append(f"step {step}: {what}")
