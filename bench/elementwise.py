"""A whole optimizer step on a GPU, next to torch's and to the bandwidth of a copy measured in the same run.

Every provider steps the same shapes; what is timed lies between two CUDA events, so it includes what the host cannot
hide. `python -m rlx_gpu.bench.elementwise`
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .. import optim
from ..compile_report import report
from ..table import TABLE
from .record import append, spread
from .shapes import SHAPES

# Formats of parameter and gradient, and the options of ours: the columns of `rlx-gpu kernels`.
STORAGES: dict[str, tuple[str, dict[str, str]]] = {
    "float32": ("float32", {}),
    "bfloat16": ("bfloat16", {"state_dtype": "bfloat16"}),
    "bfloat16_stochastic": ("bfloat16", {"state_dtype": "bfloat16", "rounding": "stochastic"}),
    "bfloat16_float32": ("bfloat16", {}),
    "float16": ("float16", {}),
}
TORCH = {"SGD": "SGD", "Adam": "Adam", "AdamW": "AdamW"}
WARMUP, REPEATS = 5, 30


def milliseconds(step: Callable[[], Any]) -> dict[str, float]:
    """Median, p20 and p80 of a step on the current stream, steps queued back to back."""
    import torch

    for _ in range(WARMUP):
        step()
    make_event: Any = torch.cuda.Event
    events = [[make_event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
    for start, end in events:
        start.record()
        step()
        end.record()
    torch.cuda.synchronize()
    return spread([start.elapsed_time(end) for start, end in events])


def copy_bandwidth() -> float:
    """GB/s of a device-to-device copy of 2 GiB, read and written."""
    import torch

    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").zero_()
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source))["median"] / 1e6


def parameters(shapes: list[tuple[int, ...]], dtype: str) -> list[Any]:
    """Parameters with gradients on the GPU."""
    import torch

    params = [torch.nn.Parameter(torch.randn(s, device="cuda").to(getattr(torch, dtype))) for s in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def providers(name: str, storage: str) -> dict[str, Callable[[list[Any]], Callable[[], Any]]]:
    """What steps one optimizer in one storage: ours, and torch's where it has the same."""
    import torch

    hyper = {"lr": 1e-3, "weight_decay": 0.1, **({"momentum": 0.9} if name == "SGD" else {})}

    def ours(params: list[Any]) -> Callable[[], Any]:
        step: Callable[[], Any] = getattr(optim, name)(params, **hyper, **STORAGES[storage][1]).step
        return step

    def theirs(params: list[Any], switch: str) -> Callable[[], Any]:
        step: Callable[[], Any] = getattr(torch.optim, TORCH[name])(params, **hyper, **{switch: True}).step
        return step

    found: dict[str, Callable[[list[Any]], Callable[[], Any]]] = {"rlx-gpu": ours}
    if name in TORCH and storage in ("float32", "bfloat16"):
        found |= {f"torch {switch}": partial(theirs, switch=switch) for switch in ("fused", "foreach")}
    return found


def traffic(name: str, storage: str, arch: str) -> float:
    """Bytes a parameter that ours moves in one step, read from the compiled kernels."""
    algorithm = TABLE[name]
    momentum = {"momentum": 0.9} if name == "SGD" else {}
    spec = algorithm.rules.select(algorithm.resolve({"lr": 1e-3, **momentum}), 2)
    rows = report(arch, [name], [storage])
    return float(sum(row["bytes_per_param"] for row in rows if row["name"].split("/")[0] == spec.name))


def measure(model: str, name: str, storage: str, arch: str, copy: float) -> list[dict[str, Any]]:
    """One row for every provider."""
    import torch

    shapes = SHAPES[model]()
    count = sum(torch.Size(shape).numel() for shape in shapes)
    rows = []
    for provider, make in providers(name, storage).items():
        params = parameters(shapes, STORAGES[storage][0])
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        time = milliseconds(make(params))
        row: dict[str, Any] = {
            "bench": "elementwise",
            "model": model,
            "optimizer": name,
            "storage": storage,
            "provider": provider,
        }
        row |= {"tensors": len(shapes), "parameters": count, "ms": {key: round(ms, 4) for key, ms in time.items()}}
        row |= {"peak_extra_bytes_per_param": round((torch.cuda.max_memory_allocated() - held) / count, 3)}
        row |= {"copy_gb_per_s": round(copy, 1)}
        if provider == "rlx-gpu":
            moved = traffic(name, storage, arch)
            rate = moved * count / time["median"] / 1e6
            row |= {"bytes_per_param": moved, "gb_per_s": round(rate, 1), "share_of_copy": round(rate / copy, 4)}
        rows.append(row)
        del params
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def main(
    model: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SHAPES)}; may be repeated.")] = None,
    optimizer: Annotated[list[str] | None, typer.Option(help="All unless given; may be repeated.")] = None,
    storage: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(STORAGES)}; may be repeated.")] = None,
    record: Annotated[Path | None, typer.Option(help="File to append to instead of the one in bench/results.")] = None,
) -> None:
    """Measure optimizer steps on this GPU and record them."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("bench-gpu needs a CUDA device; `rlx-gpu doctor` says what is missing")
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    copy = copy_bandwidth()
    cases = [
        (one_model, one_optimizer, one_storage)
        for one_model in model or SHAPES
        for one_optimizer in optimizer or TABLE
        for one_storage in storage or ("float32", "bfloat16", "bfloat16_stochastic")
    ]
    console = Console()
    table = Table("model", "optimizer", "storage", "provider", "ms", "bytes/param", "of a copy")
    for case in track(cases, console=console):
        rows = measure(*case, arch, copy)
        append("elementwise", rows, record)  # at once, so that an interrupted run keeps what it has measured
        for row in rows:
            share = f"{row['share_of_copy']:.0%}" if "share_of_copy" in row else ""
            table.add_row(
                *case, row["provider"], f"{row['ms']['median']:.3f}", str(row.get("bytes_per_param", "")), share
            )
    console.print(table, f"a copy moves {copy:.0f} GB/s")


if __name__ == "__main__":
    typer.run(main)
