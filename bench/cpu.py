"""What a step costs without a GPU: the NumPy reference, which steps CPU tensors, beside packages that step them.

It is there to be read, not to be fast; this says what that costs. No kernel runs, so there is none to be held to the
reference before. `rlx-gpu bench cpu`
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .choices import chosen, chosen_providers, naming, naming_providers, results_file
from .elementwise import OPTIMIZERS
from .providers import STORAGES
from .race import Effort, contenders, parameters, race, rows
from .shapes import Shape, gpt2_124m
from .show import Report

BLOCK = slice(2, 14)  # of GPT-2's tensors: its first block, 7,087,872 elements
MODEL = "gpt2-124m, one block"


def measure(optimizer: str, storage: str, shapes: list[Shape], named: list[str], effort: Effort) -> Any:
    """The rows of one race, and who failed."""
    params = parameters(shapes, STORAGES[storage].param, "cpu")
    field = contenders(optimizer, storage, params, named)
    results, failed = race(field, "cpu", effort)
    case: dict[str, Any] = {
        "bench": "cpu",
        "optimizer": optimizer,
        "model": MODEL,
        "storage": storage,
        "copy_gb_per_s": None,
    }
    case |= {"tensors": len(params), "parameters": sum(param.numel() for param in params)}
    return rows(case, field, results), failed


def main(
    optimizer: Annotated[list[str] | None, naming("--optimizer", OPTIMIZERS)] = None,
    storage: Annotated[list[str] | None, naming("--storage", STORAGES, ["float32"])] = None,
    providers: Annotated[list[str] | None, naming_providers()] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each provider.")] = 2,
    repeats: Annotated[int, typer.Option(min=3, help="Timed steps of a turn.")] = 3,
    json: Annotated[Path | None, results_file("cpu")] = None,
) -> None:
    """Time a step over CPU tensors, beside the peers that are installed, and record it; needs no GPU."""
    os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels would step CPU tensors in its place
    names = chosen("--optimizer", optimizer, OPTIMIZERS, OPTIMIZERS)
    forms = chosen("--storage", storage, STORAGES, ["float32"])
    named = chosen_providers(providers)
    with Report("cpu", len(names) * len(forms), json) as report:
        for form in forms:
            for name in names:
                report.begin(f"{name}, {form}")
                report.finish(*measure(name, form, gpt2_124m()[BLOCK], named, Effort(rounds, repeats)))


if __name__ == "__main__":
    typer.run(main)
