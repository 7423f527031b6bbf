"""Many trials: `rlx-gpu parity` with its progress, table, JSON and exit status."""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .. import __version__
from ..doctor import distribution_version, driver_version
from .cases import DEFAULT_SHAPES, Case, parse_shapes
from .devices import describe, driver, find_devices, torch_device
from .storages import Formats, find_storages
from .tolerances import tolerance
from .variants import Variant, find_algorithms, variants

TABLE_WIDTH = 165
FAILURES_SHOWN = 3  # of each row; JSON has them all


def machine(devices: Sequence[str]) -> dict[str, Any]:
    """What the result holds for: this machine's devices, and versions."""
    versions: dict[str, str | None] = {"rlx-gpu": __version__, "python": platform.python_version()}
    versions |= {package: distribution_version(package) for package in ("torch", "triton", "numpy", "numba")}
    versions |= {"CUDA": torch.version.cuda, "NVIDIA driver": driver_version()}
    return {"devices": {name: describe(name) for name in devices}, "versions": versions}


def rows(chosen: Iterable[tuple[str, Variant, Formats]], cases: Sequence[Case], steps: int) -> Iterator[dict[str, Any]]:
    """What each trial finds, for JSON; errors relative to the largest magnitude of their array, null if not finite."""
    from .trial import run_trial

    for name, variant, formats in chosen:
        with driver(name):
            outcome = run_trial(variant, formats, cases, steps, torch_device(name))
        tolerances = [str(tolerance(variant.spec(len(case.shape)), formats)) for case in cases]
        yield {
            "device": name,
            "optimizer": variant.algorithm.name,
            "variant": variant.label,
            "hyper": variant.hyper,
            "dtype": formats.name,
            "passed": not outcome.failures,
            "launches": outcome.launches,
            "worst": {
                slot: {**asdict(error), "error": error.error if math.isfinite(error.error) else None}
                for slot, error in outcome.worst.items()
            },
            "tolerances": list(dict.fromkeys(tolerances)),
            "failures": outcome.failures,
        }


def run(
    optimizers: Sequence[str],
    dtypes: Sequence[str],
    devices: Sequence[str],
    shapes: str | None,
    steps: int,
    as_json: bool,
) -> int:
    """`rlx-gpu parity`: prints a table or JSON; the exit status, 1 if anything fails."""
    try:
        cases = parse_shapes(DEFAULT_SHAPES if shapes is None else shapes)
        algorithms, storages = find_algorithms(optimizers), find_storages(dtypes)
        names = find_devices(devices)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    trials = [(variant, formats) for one in algorithms for variant in variants(one) for formats in storages]
    chosen = [(name, *trial) for name in names for trial in trials]
    made = rows(chosen, cases, steps)
    found = list(track(made, "Comparing", total=len(chosen), console=Console(stderr=True), transient=True))
    here, passed = machine(names), all(row["passed"] for row in found)
    if as_json:
        shown = [case.name for case in cases]
        report = {"passed": passed, **here, "steps": steps, "shapes": shown, "rows": found}
        print(json.dumps(report, indent=1, allow_nan=False))
    else:
        print_report(here, found, steps)
    return int(not passed)


def print_report(here: Mapping[str, Any], found: Sequence[dict[str, Any]], steps: int) -> None:
    """The rows as a table; below it what went wrong, what is allowed and why, and what ran where."""
    table = Table(title=f"Kernels against the float64 reference, {steps} steps", box=box.SIMPLE_HEAD)
    for column in (
        "device",
        "optimizer",
        "variant",
        "dtype",
        "parameter",
        "allowed",
        "state",
        "allowed",
        "launches",
        "result",
    ):
        table.add_column(column, no_wrap=column != "state", justify="right" if column == "launches" else "left")
    for row in found:
        table.add_row(*cells(row))
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, TABLE_WIDTH)  # better wrapped by a narrow terminal than cut off
    console.print(table)
    for row in found:
        for failure in row["failures"][:FAILURES_SHOWN]:
            console.print(
                f"FAIL {row['device']} {row['optimizer']} {row['variant']} {row['dtype']}: {failure}", markup=False
            )
    console.print("Allowed, in one step, beyond the rounding of the storage format:")
    for words in dict.fromkeys(words for row in found for words in row["tolerances"]):
        console.print(f"  {words}.")
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items() if version)
    for name, words in here["devices"].items():
        console.print(f"On {name}: {words}.")
    console.print(f"With {versions}.")
    console.print(f"{sum(row['passed'] for row in found)} of {len(found)} agree with the reference.")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    worst = {slot: error for slot, error in row["worst"].items() if slot != "step"}
    param = worst.pop("param")
    state = "\n".join(f"{slot} {scientific(error['error'])}" for slot, error in worst.items())
    allowed = max((error["allowed"] for error in worst.values()), default=None)
    result = "[green]pass[/]" if row["passed"] else "[bold red]FAIL[/]"
    numbers = (scientific(param["error"]), scientific(param["allowed"]), state, scientific(allowed) if worst else "")
    return [row["device"], row["optimizer"], row["variant"], row["dtype"], *numbers, str(row["launches"]), result]


def scientific(number: float | None) -> str:
    """A number with two digits."""
    return "not finite" if number is None else f"{number:.1e}"
