"""Recorded rows as the README and the charts read them: the newest of each measurement, all from one device."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .providers import OURS
from .record import RESULTS

Row = dict[str, Any]


def recorded(name: str, folder: Path = RESULTS) -> list[Row]:
    """All rows of a bench, oldest first."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def newest(rows: Sequence[Row], *keys: str) -> list[Row]:
    """The last row of each combination of the keys' values, of the device that was measured last.

    A bench may be repeated in part: what was not repeated keeps its older row.
    """
    found = {tuple(str(row.get(key)) for key in keys): row for row in rows if row["device"] == rows[-1]["device"]}
    return list(found.values())


def is_peer(row: Row) -> bool:
    """Whether another package was measured; ours may have several ways, named after it."""
    return not row["provider"].startswith(OURS)


def elementwise(folder: Path = RESULTS) -> list[Row]:
    """The newest whole steps of elementwise optimizers."""
    return newest(recorded("elementwise", folder), "model", "optimizer", "variant", "storage", "provider")


def matrix(folder: Path = RESULTS) -> list[Row]:
    """The newest measurements of matrix optimizers and their parts."""
    return newest(recorded("matrix", folder), "model", "shape", "optimizer", "variant", "storage", "provider")


def cpu(folder: Path = RESULTS) -> list[Row]:
    """The newest steps without a GPU."""
    return newest(recorded("cpu", folder), "model", "optimizer", "storage", "provider")


def host(folder: Path = RESULTS) -> list[Row]:
    """The newest host times."""
    return newest(recorded("host", folder), "optimizer", "tensors", "provider", "caches")


def train(folder: Path = RESULTS) -> list[Row]:
    """Every optimizer's last final runs, of those towards the target that was set last."""
    rows = newest([row for row in recorded("train", folder) if row["phase"] == "final"], "optimizer", "seed", "date")
    alike = [row for row in rows if all(row[key] == rows[-1][key] for key in ("target_loss", "config", "steps"))]
    last = {row["optimizer"]: row["date"] for row in alike}
    return [row for row in alike if row["date"] == last[row["optimizer"]]]


def memory_bound(folder: Path = RESULTS) -> list[Row]:
    """Steps, with known bytes, over the model with the largest tensors: there nothing but memory counts."""
    rows = elementwise(folder)
    size = max((row["parameters"] / row["tensors"] for row in rows), default=0)
    alike = [row for row in rows if row["parameters"] / row["tensors"] == size]
    moved = {(row["optimizer"], row["storage"]) for row in alike if row.get("bytes_per_param")}
    return [
        row
        for row in alike
        if row["storage"] in ("float32", "bfloat16") and (row["optimizer"], row["storage"]) in moved
    ]


def beside_peers(rows: list[Row], *keys: str) -> list[Row]:
    """The rows of what both this package and a peer were measured at: equal values of the keys."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(str(row.get(key)) for key in keys), []).append(row)
    return [
        row
        for alike in found.values()
        if any(row["provider"] == OURS for row in alike) and any(is_peer(row) for row in alike)
        for row in alike
    ]


def steps(folder: Path = RESULTS) -> list[Row]:
    """Whole steps in float32 of the elementwise optimizers that have a peer."""
    return beside_peers([row for row in elementwise(folder) if row["storage"] == "float32"], "model", "optimizer")


def matrix_steps(folder: Path = RESULTS) -> list[Row]:
    """Whole steps of the matrix optimizers that have a peer."""
    return beside_peers([row for row in matrix(folder) if row.get("model")], "model", "optimizer", "variant", "storage")


def newton_schulz(folder: Path = RESULTS) -> list[Row]:
    """Orthogonalisations by shape."""
    return beside_peers([row for row in matrix(folder) if row["optimizer"] == "newton_schulz"], "shape", "storage")


def task(row: Row) -> str:
    """What every provider did in such a row."""
    return f"{row['optimizer']}, {row['variant']}" if row.get("variant") else str(row["optimizer"])


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


def measured(rows: Iterable[Row]) -> str:
    """On what and when rows were measured, in a sentence."""
    rows = list(rows)
    dates = sorted(row["date"][:16] for row in rows)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"

    def every(key: str) -> str:
        return ", ".join(sorted({row[key] for row in rows}))

    return f"Measured {when} UTC on {every('device')}, torch {every('torch')}, Triton {every('triton')}."


def digest(rows: Iterable[Row]) -> str:
    """Tells one set of rows from another, in whatever order they come."""
    lines = sorted(json.dumps(row, sort_keys=True) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
