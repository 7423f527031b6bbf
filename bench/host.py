"""Host time of a step: what the Python and C++ side of an optimizer costs per tensor, without any arithmetic of ours.

Our launches are taken out; torch's fused and foreach steps run on one-element tensors, where arithmetic is next to
nothing. Providers take turns in one run: the first step of a turn finds the processor's caches full of the others' data
("cold"), the following ones find their own ("steady"). As in timeit, the garbage collector is off meanwhile.
`python -m rlx_gpu.bench.host`
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .record import append, spread

Step = Callable[[], Any]
TENSORS = (148, 300, 1000, 5000)
TURN = 10  # consecutive steps of a provider


def parameters(count: int) -> list[Any]:
    """One-element parameters with gradients."""
    import torch

    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(count)]
    for param in params:
        param.grad = torch.zeros(1)
    return params


def ours_moved(count: int) -> Step:
    """The same with every gradient at a new address in every step; assigning the gradients is included."""
    import torch

    params = parameters(count)
    step = ours_of(params)
    sets = [[torch.zeros(1) for _ in params] for _ in range(2)]

    def moved() -> None:
        sets.reverse()
        for param, grad in zip(params, sets[0], strict=True):
            param.grad = grad
        step()

    return moved


def ours_of(params: list[Any]) -> Step:
    """AdamW's step over given parameters, the launches taken out."""
    from .. import launch, optim

    launch.launch = lambda *arguments, **constants: None
    return optim.AdamW(params, lr=1e-3).step


def torch_adamw(count: int, **switches: Any) -> Step:
    """torch.optim.AdamW's step."""
    import torch

    return torch.optim.AdamW(parameters(count), lr=1e-3, **switches).step


PROVIDERS: dict[str, Callable[[int], Step]] = {
    "rlx-gpu": lambda count: ours_of(parameters(count)),
    "rlx-gpu, gradients moved": ours_moved,
    "torch fused": lambda count: torch_adamw(count, fused=True),
    "torch foreach": lambda count: torch_adamw(count, foreach=True),
}


def measure(count: int, repeats: int) -> list[dict[str, Any]]:
    """Microseconds a tensor for every provider, interleaved."""
    steps = {name: make(count) for name, make in PROVIDERS.items()}
    for step in steps.values():
        step()  # builds plans and state
    samples: dict[tuple[str, str], list[float]] = {}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, step in steps.items():
                for turn in range(TURN):
                    start = time.perf_counter()
                    step()
                    taken = (time.perf_counter() - start) * 1e6 / count
                    samples.setdefault((name, "steady" if turn else "cold"), []).append(taken)
    finally:
        gc.enable()
    rows = []
    for (name, caches), values in samples.items():
        cost, fused = spread(values), spread(samples["torch fused", caches])
        rows.append(
            {
                "bench": "host",
                "optimizer": "AdamW",
                "provider": name,
                "tensors": count,
                "caches": caches,
                "us_per_tensor": {key: round(value, 3) for key, value in cost.items()},
                "torch_fused_over_this": round(fused["median"] / cost["median"], 2),
            }
        )
    return rows


def main(
    tensors: Annotated[list[int] | None, typer.Option(help="How many tensors; may be repeated.")] = None,
    repeats: Annotated[int, typer.Option(min=5, help="Turns of each provider.")] = 30,
    record: Annotated[Path | None, typer.Option(help="File to append to instead of bench/results/host.jsonl.")] = None,
) -> None:
    """Measure the host time of an AdamW step and record it."""
    os.environ["TRITON_INTERPRET"] = "1"  # CPU tensors take the kernels' path; nothing is launched
    import torch

    torch.set_num_threads(1)
    rows = [row for count in tensors or TENSORS for row in measure(count, repeats)]
    table = Table("tensors", "caches", "provider", "µs a tensor", "p20 to p80", "torch fused / this")
    for row in rows:
        cost = row["us_per_tensor"]
        cells = (f"{cost['median']:.2f}", f"{cost['p20']:.2f} to {cost['p80']:.2f}", f"{row['torch_fused_over_this']}x")
        table.add_row(str(row["tensors"]), row["caches"], row["provider"], *cells)
    console = Console()
    console.print(table)
    console.print(f"recorded in {append('host', rows, record)}")


if __name__ == "__main__":
    typer.run(main)
