"""Recorded rows as the README and the charts read them: the newest of each measurement, all from one device.

`train_rows` reads those of training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .providers import NAMES, OURS
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
    found = [row for row in recorded("cpu", folder) if "threads" in row]  # older rows are of the NumPy reference
    return newest(found, "model", "optimizer", "storage", "provider")


def host(folder: Path = RESULTS) -> list[Row]:
    """The newest host times, by tensors and then in the order of the providers."""
    rows = newest(recorded("host", folder), "optimizer", "tensors", "provider", "caches")
    return sorted(rows, key=lambda row: (row["tensors"], *place(row["provider"])))


def place(provider: str) -> tuple[int, str]:
    """Sorts providers as `providers` has them, each followed by its other ways; unknown ones are last."""
    known = provider.partition(", ")[0]
    return (NAMES.index(known) if known in NAMES else len(NAMES)), provider


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


def measured(rows: Iterable[Row]) -> str:
    """When, on what and at which commit rows were measured, in a sentence."""
    rows = list(rows)
    dates = sorted(row["date"][:16] for row in rows)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"

    def every(key: str) -> str:
        return ", ".join(sorted({row[key] or "none" for row in rows}))

    commits = " and ".join(map(commit_in_words, sorted({row["commit"] for row in rows})))
    where = f"on {every('device')}, torch {every('torch')}, Triton {every('triton')}"
    return f"Measured {when} UTC {where}, at commit {commits}."


def commit_in_words(commit: str) -> str:
    """A commit as `record.environment` has it, saying whether the tree differed from it."""
    clean = commit.removesuffix("-dirty")
    return clean if clean == commit else f"{clean} with uncommitted changes"


def digest(rows: Iterable[Row]) -> str:
    """Tells one set of rows from another, in whatever order they come."""
    lines = sorted(json.dumps(row, sort_keys=True) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
