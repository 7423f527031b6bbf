"""Recorded training as the README and the chart read it: one run of the bench, and its results in words."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path

from .record import RESULTS
from .rows import Row, recorded

OWN_RULE = "own rule"
# By `sweep_open`, before the learning rate: where a better one may be.
MARKS = {None: "", "above": "≥ ", "below": "≤ ", "above and below": "untuned, "}


def last_run(folder: Path = RESULTS) -> list[Row]:
    """All rows of the newest of the runs with the most optimizers, so that one cut short or of a few hides none.

    A run has one date, one configuration and one target; nothing of it is mixed with another.
    """
    runs: dict[str, list[Row]] = {}
    for row in recorded("train", folder):
        same = [row[key] for key in ("date", "device", "config", "steps", "target_loss")]
        runs.setdefault(json.dumps(same, sort_keys=True), []).append(row)

    def completeness(run: Sequence[Row]) -> tuple[int, str]:
        return len({row["optimizer"] for row in run}), run[0]["date"]

    return max(runs.values(), key=completeness, default=[])


def finals(folder: Path = RESULTS) -> list[Row]:
    """The runs at the tuned learning rates, each with `sweep_open`, also where it was recorded without."""
    run = last_run(folder)
    tried: dict[str, list[float | None]] = {}
    for row in run:
        if row["phase"] == "sweep":
            tried.setdefault(row["optimizer"], []).append(row["lr"])
    return [
        {"sweep_open": sweep_open(row["lr"], tried[row["optimizer"]]), **row} for row in run if row["phase"] == "final"
    ]


def sweep_open(lr: float | None, tried: Collection[float | None]) -> str | None:
    """On which side of the best learning rate none was tried: "above", "below", "above and below", or None.

    The optimizer's own rule, without a learning rate, has no sides.
    """
    if lr is None:
        return None
    rates = [rate for rate in tried if rate is not None]
    return " and ".join(side for side, end in (("above", max(rates)), ("below", min(rates))) if lr == end) or None


def lr_in_words(final: Row) -> str:
    """The learning rate of a final run, marked where the sweep ended at it."""
    return OWN_RULE if final["lr"] is None else f"{MARKS[final['sweep_open']]}{final['lr']:g}"


def edge_in_words(finals: Sequence[Row]) -> str:
    """What ≥ and ≤ mean in `lr_in_words`, after a space; empty if there are none."""
    meaning = " ≥ or ≤: the best learning rate is the highest or the lowest of those tried; one beyond may be better."
    return meaning if {"above", "below"} & {row["sweep_open"] for row in finals} else ""


def standing(finals: Sequence[Row]) -> tuple[float, float]:
    """Sorts optimizers by their seeds' median time to the target, never being last, then by their median last loss."""
    return _median(finals, "seconds_to_target"), _median(finals, "validation_loss")


def _median(rows: Sequence[Row], key: str) -> float:
    """The median of a key, null being infinite."""
    return statistics.median(math.inf if row[key] is None else row[key] for row in rows)


def spread_in_words(values: Sequence[float | None], digits: int, unit: str = "") -> str:
    """Median and range of what the seeds reached; where not all did, how many, and the range of those."""
    reached = sorted(value for value in values if value is not None)
    if not reached:
        return "not reached"
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(reached), reached[0], reached[-1]))
    between = low if low == high else f"{low} to {high}"
    if len(reached) < len(values):
        return f"{len(reached)} of {len(values)} seeds ({between}{unit})"
    return f"{middle}{unit} ({between})"


def summary(finals: Sequence[Row]) -> list[str]:
    """One optimizer's final runs in words: learning rate, seconds and steps to the target, step time, last loss."""

    def over_seeds(key: str, digits: int) -> str:
        return spread_in_words([row[key] for row in finals], digits)

    times = [row["ms"]["median"] for row in finals if row["ms"]]
    return [
        lr_in_words(finals[0]),
        over_seeds("seconds_to_target", 2),
        over_seeds("steps_to_target", 0),
        f"{statistics.median(times):.2f}" if times else "–",
        over_seeds("validation_loss", 3),
    ]
