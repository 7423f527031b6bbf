"""A whole optimizer step on a GPU: ours beside every installed peer, on the tensors of real models, in every storage.

First the machine's own copy bandwidth, then every optimizer against the reference in the storages to be timed, then the
race. Rows are recorded model by model, as they are measured. `rlx-gpu bench elementwise`
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer

from ..compiled.report import rows as kernel_rows
from ..compiled.variants import variants
from ..table import TABLE
from . import gate
from .choices import chosen, chosen_providers, naming, naming_providers, results_file
from .providers import HYPER, OWN_HYPER, STORAGES
from .race import Effort, contenders, in_words, parameters, race, rows
from .shapes import SHAPES
from .show import Report
from .timing import copy_bandwidth, this_arch

OPTIMIZERS = [name for name, algorithm in TABLE.items() if not algorithm.of_matrices]
MODELS = ("gpt2-124m", "vit", "llama-1b", "moe")  # unless asked for others
FORMATS = ("float32", "bfloat16", "bfloat16_stochastic")  # likewise
WORKERS = 8  # processes that compile and check kernels before the race


@dataclass(frozen=True)
class Verdict:
    """What is known of one optimizer in one storage before it is timed: bytes a parameter, and what is wrong."""

    bytes_per_param: float | None = None
    fault: str | None = None


def bytes_per_param(optimizer: str, storage: str, arch: str) -> float:
    """Bytes a parameter that ours moves in one step over a matrix, read from the compiled kernels."""
    algorithm = TABLE[optimizer]
    hyper = algorithm.resolve({**HYPER, **OWN_HYPER.get(optimizer, {})})
    spec = algorithm.select(hyper, 2)
    launched = [one for one in variants([optimizer], [storage]) if one.name.split("/")[0] == spec.name]
    return float(sum(row["bytes_per_param"] for row in kernel_rows(arch, launched)))


def examine(optimizer: str, storage: str, arch: str) -> Verdict:
    """Compiles ours and holds it to the reference, in a process of its own; the compiled kernels stay on the disk."""
    if STORAGES[storage].ours is None:
        return Verdict()
    try:
        gate.check(optimizer, storage, "cuda")
        return Verdict(bytes_per_param(optimizer, storage, arch))
    except gate.ParityError as error:
        return Verdict(fault=str(error))
    except Exception as error:  # one kernel that does not compile leaves the others to be timed
        return Verdict(fault=f"{optimizer} in {storage}: {in_words(error)}")


def examined(cases: Sequence[tuple[str, str]], arch: str) -> Iterator[tuple[tuple[str, str], Verdict]]:
    """The verdict on each optimizer and storage, several at a time."""
    with ProcessPoolExecutor(min(WORKERS, os.cpu_count() or 1), get_context("spawn")) as pool:
        yield from zip(cases, pool.map(examine, *zip(*cases, strict=True), [arch] * len(cases)), strict=True)


def main(
    shapes: Annotated[list[str] | None, naming("--shapes", SHAPES, MODELS)] = None,
    optimizer: Annotated[list[str] | None, naming("--optimizer", OPTIMIZERS)] = None,
    storage: Annotated[list[str] | None, naming("--storage", STORAGES, FORMATS)] = None,
    providers: Annotated[list[str] | None, naming_providers()] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each provider.")] = Effort.rounds,
    repeats: Annotated[
        int, typer.Option(min=3, help="Timed steps of a turn, fewer where they are long.")
    ] = Effort.repeats,
    json: Annotated[Path | None, results_file("elementwise")] = None,
) -> None:
    """Time a step of every optimizer on this GPU, beside the peers that are installed, and record it."""
    import torch

    models = chosen("--shapes", shapes, SHAPES, MODELS)
    named = chosen_providers(providers)
    names = chosen("--optimizer", optimizer, OPTIMIZERS, OPTIMIZERS)
    cases = [(name, form) for form in chosen("--storage", storage, STORAGES, FORMATS) for name in names]
    arch, effort = this_arch(), Effort(rounds, repeats)
    with Report("elementwise", len(cases) * (1 + len(models)), json) as report:
        report.begin("Compiling, and checking against the reference")
        verdicts: dict[tuple[str, str], Verdict] = {}
        for case, verdict in examined(cases, arch):
            verdicts[case] = verdict
            if verdict.fault:
                report.faults.append(f"{verdict.fault}; not timed")
            report.finish()
        copy = round(copy_bandwidth(), 1)
        report.notes.append(f"a copy moves {copy:.0f} GB/s")
        for model in models:
            for form in dict.fromkeys(form for _, form in cases):
                params = parameters(SHAPES[model](), STORAGES[form].param, "cuda")
                for name in names:
                    report.begin(f"{model}, {name}, {form}")
                    report.finish(*measure(model, name, form, params, named, verdicts[name, form], copy, effort))
                del params
                gc.collect()
                torch.cuda.empty_cache()


def measure(
    model: str,
    optimizer: str,
    storage: str,
    params: Sequence[Any],
    named: Sequence[str],
    verdict: Verdict,
    copy: float,
    effort: Effort,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of one race and the peers that failed; no race without ours where ours is wrong."""
    if verdict.fault:
        return [], {}
    field = contenders(optimizer, storage, params, named, verdict.bytes_per_param)
    results, failed = race(field, params[0].device.type, effort)
    case: dict[str, Any] = {"bench": "elementwise", "optimizer": optimizer, "model": model, "storage": storage}
    case |= {"tensors": len(params), "parameters": sum(param.numel() for param in params), "copy_gb_per_s": copy}
    return rows(case, field, results), failed


if __name__ == "__main__":
    typer.run(main)
