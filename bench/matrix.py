"""Matrix work on a GPU: Newton–Schulz and symmetric products by shape, and whole steps of Muon, SOAP and KronPSGD.

Every routine is held to float64 on the matrices that are timed, every optimizer to the reference on small ones, before
the race. SOAP's own package is no package: its authors publish a file, so pytorch_optimizer's and heavyball's stand for
it. A step that renews a basis is the slowest of ten consecutive ones ("refresh"), the others are "steady".
`rlx-gpu bench matrix`
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from . import baselines, gate
from .choices import chosen, chosen_providers, naming, naming_providers, results_file
from .providers import OURS, STORAGES, as_is, ours
from .race import Contender, Effort, Result, contenders, in_words, parameters, race, rows
from .record import environment
from .shapes import SHAPES, Shape, matrices
from .show import Report
from .timing import copy_bandwidth, matmul_rate, this_arch

BASELINE = "batched cuBLAS"
BATCHES: tuple[Shape, ...] = (
    (12, 768, 768),
    (12, 768, 3072),
    (32, 512, 2048),
    (32, 2048, 2048),
    (16, 2048, 8192),
    (128, 1024, 2048),
    (4, 4096, 4096),
)
SIZES = (1024, 2048, 4096, 8192)
PERIOD, PERIODS = 10, 3  # steps between two renewals of a basis, and how many periods are timed
PHASES = ("steady", "refresh", "mean")
MODELS = {"Muon": "llama-1b", "SOAP": "gpt2-124m", "KronPSGD": "gpt2-124m"}
WHAT = ("symmetric_product", "newton_schulz", *MODELS)
# Allowed relative error in the Frobenius norm: of the rounding of the result's own format, of five iterations in it.
PRODUCT_ERROR = {"bfloat16": 2.0**-8, "float32": 2e-6}
ITERATION_ERROR = 0.05
Rows = tuple[list[dict[str, Any]], dict[str, str]]


def error(found: Any, wanted: Any) -> float:
    """‖found − wanted‖/‖wanted‖ in float64; infinite where that is no number."""
    value = float((found.double() - wanted).norm() / wanted.norm())
    return value if value == value else float("inf")


def checked(name: str, value: float, allowed: float) -> None:
    """Raises ParityError if an error is larger than it may be."""
    if value > allowed:
        raise gate.ParityError(f"{name} is off by {value:.1e} of its norm, allowed {allowed:.1e}")


def with_rates(found: list[dict[str, Any]], operations: float, matmul: float) -> list[dict[str, Any]]:
    """The rows with their rate, in operations of the plain algorithm, and its share of a large product's."""
    for row in found:
        rate = operations / row["ms"]["median"] / 1e9
        row |= {"tflops": round(rate, 1), "share_of_matmul": round(rate / matmul, 3), "matmul_tflops": round(matmul, 1)}
    return found


def symmetric_product(size: int, storage: str, device: str, effort: Effort, case: dict[str, Any]) -> Rows:
    """XXᵀ of one square matrix: ours, a general product, and in float32 cuBLAS's own symmetric one."""
    import torch

    from ..matrix import products

    x = torch.randn(1, size, size, device=device, dtype=getattr(torch, storage))
    out = torch.empty_like(x)
    wanted = torch.bmm(x.double(), x.double().mT)
    name = f"symmetric_product of {size} in {storage}"
    checked(name, error(products.symmetric_product(x, out=out), wanted), PRODUCT_ERROR[storage])
    del wanted
    general = partial(torch.bmm, x, x.mT, out=out)
    field = [
        Contender(OURS, environment()["commit"], lambda: partial(products.symmetric_product, x, out=out)),
        Contender("cuBLAS", torch.__version__, lambda: general),
    ]
    triangle = baselines.syrk(x[0]) if storage == "float32" and device == "cuda" else None
    if triangle:
        field.append(Contender("cuBLAS syrk, one triangle", torch.__version__, lambda: triangle))
    with products.full_float32():
        results, failed = race(field, device, effort)
    case |= {"optimizer": "symmetric_product", "shape": [1, size, size], "storage": storage}
    found = rows(case | {"tensors": 1, "parameters": size * size}, field, results)
    return with_rates(found, 2.0 * size**3, case["matmul_tflops"]), failed


def newton_schulz(shape: Shape, device: str, effort: Effort, case: dict[str, Any]) -> Rows:
    """Five steps on a batch in bfloat16: ours as it chooses, each of its forms, batched products, torch's loop."""
    import torch
    from torch.optim import _muon

    from ..matrix import newton_schulz as routines

    x = torch.randn(shape, device=device, dtype=torch.bfloat16)
    triples = baselines.TRIPLES

    def in_form(form: str) -> Any:
        batch = routines.normalized(x, baselines.EPS, x.dtype)
        start = routines.oriented(batch)
        found = routines.FORMS[form](start, triples)
        return found if start is batch else found.mT

    def one_by_one() -> None:
        for matrix in x:
            _muon._zeropower_via_newtonschulz(matrix, triples[0], baselines.STEPS, baselines.EPS)

    wanted = baselines.exact_newton_schulz(x[-1])
    name = f"newton_schulz of {'×'.join(map(str, shape))}"
    checked(name, error(routines.newton_schulz(x)[-1], wanted), ITERATION_ERROR)
    steps: dict[str, Callable[[], Any]] = {OURS: partial(routines.newton_schulz, x)}
    unfit: dict[str, str] = {}
    for form in routines.FORMS:
        if form != "gram" or max(shape[1:]) >= 2 * min(shape[1:]):
            found = in_form(form)[-1]
            off = error(found, wanted)
            if off <= ITERATION_ERROR:
                steps[f"{OURS}, {form}"] = partial(in_form, form)
            else:  # ours does not choose it here, or the check above had failed
                unfit[f"the {form} form"] = f"off by {off:.1e}, not timed"
    steps |= {BASELINE: partial(baselines.batched_newton_schulz, x), "torch": one_by_one}
    versions = {provider: environment()["commit" if provider.startswith(OURS) else "torch"] for provider in steps}
    field = [Contender(key, versions[key], partial(as_is, step)) for key, step in steps.items()]
    results, failed = race(field, device, effort)
    case |= {"optimizer": "newton_schulz", "shape": list(shape), "storage": "bfloat16"}
    found = rows(case | {"tensors": shape[0], "parameters": x.numel()}, field, results)
    return with_rates(found, baselines.plain_operations([shape]) * shape[0], case["matmul_tflops"]), failed | unfit


def optimizer_step(
    name: str, storage: str, params: Sequence[Any], named: Sequence[str], effort: Effort, case: dict[str, Any]
) -> Rows:
    """One optimizer's whole step over matrices, on the device they are on."""
    device = params[0].device.type
    gate.check(name, storage, device)
    field = contenders(name, storage, params, named)
    if name == "Muon" and (not named or BASELINE in named):
        field.append(Contender(BASELINE, environment()["torch"], partial(baselines.batched_muon, params)))
    if name == "SOAP" and field and field[0].name == OURS:
        together = partial(ours, name, storage, params, stagger=False)
        field.insert(1, Contender(f"{OURS}, not staggered", environment()["commit"], together))
    case |= {"optimizer": name, "storage": storage, "tensors": len(params)}
    case |= {"parameters": sum(param.numel() for param in params)}
    if name == "SOAP":
        effort = replace(effort, rounds=1, repeats=PERIODS * PERIOD, least=PERIODS * PERIOD)
        results, failed = race(field, device, effort)
        return [
            row for phase in PHASES for row in rows({**case, "variant": phase}, field, only(phase, results))
        ], failed
    results, failed = race(field, device, effort)
    found = rows(case, field, results)
    if name == "Muon" and "matmul_tflops" in case:
        with_rates(found, baselines.plain_operations([tuple(param.shape) for param in params]), case["matmul_tflops"])
    return found, failed


def only(phase: str, results: Mapping[str, Result]) -> dict[str, Result]:
    """The results with one phase's samples; launches and host time were counted in whichever step it was."""
    return {
        name: replace(result, ms=by_phase(result.ms)[phase], launches=None, host_ms=[])
        for name, result in results.items()
    }


def by_phase(samples: Sequence[float]) -> dict[str, list[float]]:
    """Consecutive steps by what they are: of each ten the slowest and the others, and the mean of the ten."""
    periods = [sorted(samples[i : i + PERIOD]) for i in range(0, len(samples), PERIOD)]
    return {
        "steady": [ms for period in periods for ms in period[:-1]],
        "refresh": [period[-1] for period in periods],
        "mean": [statistics.fmean(period) for period in periods],
    }


def main(
    shapes: Annotated[list[str] | None, naming("--shapes", SHAPES)] = None,
    optimizer: Annotated[list[str] | None, naming("--optimizer", WHAT)] = None,
    storage: Annotated[list[str] | None, naming("--storage", STORAGES, ["float32"])] = None,
    providers: Annotated[list[str] | None, naming_providers(BASELINE)] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each provider.")] = Effort.rounds,
    repeats: Annotated[
        int, typer.Option(min=3, help="Timed steps of a turn, fewer where they are long.")
    ] = Effort.repeats,
    json: Annotated[Path | None, results_file("matrix")] = None,
) -> None:
    """Time matrix routines and whole steps of the matrix optimizers on this GPU, beside peers, and record them."""
    named = chosen_providers(providers, BASELINE)
    tasks = list(
        planned(
            chosen("--optimizer", optimizer, WHAT, WHAT),
            chosen("--shapes", shapes, SHAPES, ()),
            chosen("--storage", storage, STORAGES, ["float32"]),
            named,
            Effort(rounds, repeats),
        )
    )
    this_arch()
    with Report("matrix", len(tasks), json) as report:
        case = {
            "bench": "matrix",
            "copy_gb_per_s": round(copy_bandwidth(), 1),
            "matmul_tflops": round(matmul_rate(), 1),
        }
        rates = "a copy moves {copy_gb_per_s:.0f} GB/s, a large bfloat16 product runs at {matmul_tflops:.0f} TFLOP/s"
        report.notes.append(rates.format(**case))
        for name, task in tasks:
            report.begin(name)
            try:
                report.finish(*task(dict(case)))
            except Exception as wrong:  # the other tasks are still worth their time
                told = str(wrong) if isinstance(wrong, gate.ParityError) else f"{name}: {in_words(wrong)}"
                report.faults.append(f"{told}; not timed")
                report.finish()
            clear()


def planned(
    what: Sequence[str], models: Sequence[str], storages: Sequence[str], named: Sequence[str], effort: Effort
) -> Iterator[tuple[str, Callable[[dict[str, Any]], Rows]]]:
    """What is measured, in order, each with what it is called."""
    if "symmetric_product" in what:
        for size, form in product(SIZES, PRODUCT_ERROR):
            yield f"symmetric product of {size} in {form}", partial(symmetric_product, size, form, "cuda", effort)
    if "newton_schulz" in what:
        for shape in BATCHES:
            yield f"Newton–Schulz of {'×'.join(map(str, shape))}", partial(newton_schulz, shape, "cuda", effort)
    for name, form in product([name for name in MODELS if name in what], storages):
        for model in models or [MODELS[name]]:
            yield f"{name} on {model} in {form}", partial(model_step, name, form, model, named, effort)


def model_step(name: str, storage: str, model: str, named: Sequence[str], effort: Effort, case: dict[str, Any]) -> Rows:
    """One optimizer's step over the hidden matrices of a model."""
    params = parameters(matrices(model), STORAGES[storage].param, "cuda")
    return optimizer_step(name, storage, params, named, effort, case | {"model": model})


def clear() -> None:
    """Gives the memory of one task back before the next."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    typer.run(main)
