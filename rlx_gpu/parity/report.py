"""Many trials: `rlx-gpu parity` with its progress, table, JSON and exit status."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
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
from ..doctor import driver_version
from ..engine.devices import interpreted
from .cases import DEFAULT_SHAPES, Case, parse_shapes
from .storages import Formats, find_storages
from .tolerances import tolerance
from .variants import Variant, find_algorithms, variants

TABLE_WIDTH = 150
FAILURES_SHOWN = 3  # of each row; JSON has them all


def find_device() -> torch.device:
    """The GPU if there is one; otherwise the CPU, where Triton is told to interpret kernels, rounding as a GPU does.

    Raises:
        RuntimeError: there are no kernels to run, or Triton was imported before it could be told.
    """
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which is the next line at the earliest
    if interpreted():
        from ..engine.interpreter import repair

        repair()
        return torch.device("cpu")
    if "triton" not in sys.modules:
        raise RuntimeError("Triton is not installed, so there are no kernels to check: pip install triton")
    if not torch.cuda.is_available():
        raise RuntimeError("Triton was imported before it could be told to interpret; set TRITON_INTERPRET=1")
    return torch.device("cuda")


def describe(device: torch.device) -> dict[str, Any]:
    """What the result holds for: this machine's device, how kernels run on it, and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions: dict[str, str | None] = {"rlx-gpu": __version__, "python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in ("torch", "triton", "numpy")}
    versions |= {"CUDA": torch.version.cuda, "NVIDIA driver": driver_version()}
    return {"device": name, "path": "interpreted" if device.type == "cpu" else "compiled", "versions": versions}


def rows(
    chosen: Iterable[tuple[Variant, Formats]], cases: Sequence[Case], steps: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """What each trial finds, for JSON; errors relative to the largest magnitude of their array, null if not finite."""
    from .trial import run_trial

    for variant, formats in chosen:
        outcome = run_trial(variant, formats, cases, steps, device)
        tolerances = [str(tolerance(variant.spec(len(case.shape)), formats)) for case in cases]
        yield {
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


def run(optimizers: Sequence[str], dtypes: Sequence[str], shapes: str | None, steps: int, as_json: bool) -> int:
    """`rlx-gpu parity`: prints a table or JSON; the exit status, 1 if anything fails."""
    try:
        cases = parse_shapes(DEFAULT_SHAPES if shapes is None else shapes)
        algorithms, storages = find_algorithms(optimizers), find_storages(dtypes)
        device = find_device()
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    chosen = [(v, formats) for algorithm in algorithms for v in variants(algorithm) for formats in storages]
    made = rows(chosen, cases, steps, device)
    found = list(track(made, "Comparing", total=len(chosen), console=Console(stderr=True), transient=True))
    machine, passed = describe(device), all(row["passed"] for row in found)
    if as_json:
        names = [case.name for case in cases]
        report = {"passed": passed, **machine, "steps": steps, "shapes": names, "rows": found}
        print(json.dumps(report, indent=1, allow_nan=False))
    else:
        print_report(machine, found, steps)
    return int(not passed)


def print_report(machine: Mapping[str, Any], found: Sequence[dict[str, Any]], steps: int) -> None:
    """The rows as a table; below it what went wrong, what is allowed and why, and what ran where."""
    table = Table(title=f"Kernels against the float64 reference, {steps} steps", box=box.SIMPLE_HEAD)
    for column in ("optimizer", "variant", "dtype", "parameter", "allowed", "state", "allowed", "launches", "result"):
        table.add_column(column, no_wrap=column != "state", justify="right" if column == "launches" else "left")
    for row in found:
        table.add_row(*cells(row))
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, TABLE_WIDTH)  # better wrapped by a narrow terminal than cut off
    console.print(table)
    for row in found:
        for failure in row["failures"][:FAILURES_SHOWN]:
            console.print(f"FAIL {row['optimizer']} {row['variant']} {row['dtype']}: {failure}", markup=False)
    console.print("Allowed, in one step, beyond the rounding of the storage format:")
    for words in dict.fromkeys(words for row in found for words in row["tolerances"]):
        console.print(f"  {words}.")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    console.print(f"Ran on {machine['device']}, kernels {machine['path']}; {versions}.")
    console.print(f"{sum(row['passed'] for row in found)} of {len(found)} agree with the reference.")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    worst = {slot: error for slot, error in row["worst"].items() if slot != "step"}
    param = worst.pop("param")
    state = "\n".join(f"{slot} {scientific(error['error'])}" for slot, error in worst.items())
    allowed = max((error["allowed"] for error in worst.values()), default=None)
    result = "[green]pass[/]" if row["passed"] else "[bold red]FAIL[/]"
    numbers = (scientific(param["error"]), scientific(param["allowed"]), state, scientific(allowed) if worst else "")
    return [row["optimizer"], row["variant"], row["dtype"], *numbers, str(row["launches"]), result]


def scientific(number: float | None) -> str:
    """A number with two digits."""
    return "not finite" if number is None else f"{number:.1e}"
