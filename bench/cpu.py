"""Whole steps over CPU tensors, on all threads that torch uses: ours beside packages that step them.

Ten million parameters in thirty matrices, in every storage; five thousand tensors of eight elements, where the host's
own time is all, with gradients that are absent here and there; and a transformer's matrices for the optimizers that
treat them. Each is held to the float64 reference before it is timed. `rlx-gpu bench cpu`, on a machine that does
nothing else
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..table import TABLE
from . import gate
from .choices import chosen, chosen_providers, naming, naming_providers, results_file
from .elementwise import OPTIMIZERS as ELEMENTWISE
from .providers import STORAGES
from .race import Contender, Effort, contenders, parameters, race, rows
from .shapes import Shape
from .show import Report
from .timing import Step

FORMATS = ("float32", "bfloat16", "bfloat16_stochastic", "bfloat16_float32", "float16")
MATRIX = tuple(name for name, algorithm in TABLE.items() if algorithm.of_matrices)
LARGE = "10m-in-30-matrices"
SMALL = "5000-tensors-of-8"
BLOCKS = "transformer-matrices"
WIDTH = 256


def large() -> list[Shape]:
    """9,999,360 elements."""
    return [(512, 651)] * 30


def small() -> list[Shape]:
    """40,000 elements."""
    return [(8,)] * 5000


def blocks() -> list[Shape]:
    """The 16 matrices of four transformer blocks, 3,145,728 elements."""
    return [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)] * 4


@dataclass(frozen=True)
class Case:
    """One race: the tensors, and which of their gradients a step finds, by the number of the step."""

    model: str
    shapes: Callable[[], list[Shape]]
    optimizer: str
    storage: str
    present: Callable[[int, int], Sequence[int]] | None = None


def every(period: int, count: int, step: int) -> Sequence[int]:
    """All but every so manieth."""
    return [place for place in range(count) if place % period]


def never_the_same(count: int, step: int) -> Sequence[int]:
    """Half of all, another half in every step."""
    return random.Random(step).sample(range(count), count // 2)


CASES = [
    *(Case(LARGE, large, name, form) for form in FORMATS for name in ELEMENTWISE),
    *(Case(BLOCKS, blocks, name, form) for form in ("float32", "bfloat16") for name in MATRIX),
    Case(SMALL, small, "AdamW", "float32"),
    Case(f"{SMALL}-every-2nd-absent", small, "AdamW", "float32", partial(every, 2)),
    Case(f"{SMALL}-every-7th-absent", small, "AdamW", "float32", partial(every, 7)),
    Case(f"{SMALL}-changing-halves", small, "AdamW", "float32", never_the_same),
]
MODELS = tuple(dict.fromkeys(case.model for case in CASES))


def finding(make: Callable[[], Step], params: Sequence[Any], present: Callable[[int, int], Sequence[int]]) -> Step:
    """A step before which the gradients of some parameters are taken away, which is timed as well; the first finds all,
    so that every parameter has its state.
    """
    step, grads, number = make(), [param.grad for param in params], iter(range(1 << 30))
    step()

    def run() -> None:
        chosen = set(present(len(params), next(number)))
        for place, (param, grad) in enumerate(zip(params, grads, strict=True)):
            param.grad = grad if place in chosen else None
        step()
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad

    return run


def measure(case: Case, named: list[str], effort: Effort) -> Any:
    """The rows of one race, and who failed."""
    import torch

    shapes = case.shapes()
    params = parameters(shapes, STORAGES[case.storage].param, "cpu")
    field = contenders(case.optimizer, case.storage, params, named)
    entered: list[Contender] = field
    if case.present is not None:
        entered = [replace(one, make=partial(finding, one.make, params, case.present)) for one in field]
    results, failed = race(entered, "cpu", effort)
    about: dict[str, Any] = {"bench": "cpu", "optimizer": case.optimizer, "model": case.model}
    about |= {"storage": case.storage, "copy_gb_per_s": None, "threads": torch.get_num_threads()}
    about |= {"tensors": len(params), "parameters": sum(param.numel() for param in params)}
    return rows(about, entered, results), failed


def main(
    model: Annotated[list[str] | None, naming("--model", MODELS)] = None,
    optimizer: Annotated[list[str] | None, naming("--optimizer", TABLE)] = None,
    storage: Annotated[list[str] | None, naming("--storage", FORMATS)] = None,
    providers: Annotated[list[str] | None, naming_providers()] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each provider.")] = 3,
    repeats: Annotated[int, typer.Option(min=3, help="Timed steps of a turn, fewer where they are long.")] = 12,
    json: Annotated[Path | None, results_file("cpu")] = None,
) -> None:
    """Time a step over CPU tensors, beside the peers that are installed, and record it; needs no GPU."""
    os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels would step CPU tensors in the host's place
    models = chosen("--model", model, MODELS, MODELS)
    names = chosen("--optimizer", optimizer, TABLE, list(TABLE))
    forms = chosen("--storage", storage, FORMATS, FORMATS)
    named = chosen_providers(providers)
    cases = [case for case in CASES if case.model in models and case.optimizer in names and case.storage in forms]
    wrong: dict[tuple[str, str], str] = {}
    with Report("cpu", len(cases), json) as report:
        for name, form in dict.fromkeys((case.optimizer, case.storage) for case in cases):
            try:
                gate.check(name, form, "cpu")
            except gate.ParityError as error:
                wrong[name, form] = str(error)
                report.faults.append(f"{error}; not timed")
        for case in cases:
            report.begin(f"{case.model}, {case.optimizer}, {case.storage}")
            if (case.optimizer, case.storage) in wrong:
                report.finish()
            else:
                report.finish(*measure(case, named, Effort(rounds, repeats, seconds=1.0)))


if __name__ == "__main__":
    typer.run(main)
