"""Host time of a step: what the Python and C++ side of an optimizer costs per tensor, without any arithmetic of ours.

Our launches are taken out; the peers' steps run on one-element tensors on the CPU, where arithmetic is next to nothing.
Providers take turns in one run: the first step of a turn finds the processor's caches full of the others' data
("cold"), the following ones find their own ("steady"). As in timeit, the garbage collector is off meanwhile.
`rlx-gpu bench host`
"""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..terminal import print_whole
from . import providers as known
from .choices import chosen_providers, naming_providers, results_file
from .providers import OURS
from .record import append, environment, spread
from .timing import Step

TENSORS = (10, 148, 300, 1000, 5000)
TURN = 10  # consecutive steps of a provider
OPTIMIZER, STORAGE = "AdamW", "float32"


def parameters(count: int) -> list[Any]:
    """One-element parameters with gradients."""
    import torch

    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(count)]
    for param in params:
        param.grad = torch.zeros(1)
    return params


def ours_moved(count: int) -> Step:
    """Ours with every gradient at a new address in every step; assigning the gradients is included."""
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


def ours_changing(count: int) -> Step:
    """Ours with a set of gradients in every step that was never there before, as of experts that get no tokens.

    Each is there seven times in eight; assigning the gradients is included.
    """
    import torch

    params = parameters(count)
    step = ours_of(params)
    grads = [torch.zeros(1) for _ in params]
    chance = random.Random(0)

    def changed() -> None:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad if chance.random() < 0.875 else None
        step()

    return changed


def ours_of(params: list[Any]) -> Step:
    """Our step over given parameters, the launches taken out."""
    from ..engine import launch

    launch.launch = lambda *arguments, **constants: None
    return known.ours(OPTIMIZER, STORAGE, params)


def steps(count: int, named: Collection[str] = ()) -> dict[str, tuple[str, Step]]:
    """Version and step of each provider, ours twice and the peers that are installed."""
    found: dict[str, tuple[str, Step]] = {}
    if not named or OURS in named:
        version = environment()["commit"]
        found[OURS] = version, ours_of(parameters(count))
        found[f"{OURS}, gradients moved"] = version, ours_moved(count)
        found[f"{OURS}, changing sets"] = version, ours_changing(count)
    for peer in known.peers(OPTIMIZER, STORAGE, "cpu", named):
        found[peer.name] = peer.version, peer.step(OPTIMIZER, STORAGE, parameters(count))
    return found


def sample(field: Mapping[str, tuple[str, Step]], repeats: int) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of every provider's steps with steady and with cold caches, interleaved."""
    for _, step in field.values():
        step()  # builds plans and state
    samples: dict[tuple[str, str], list[float]] = {}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, (_, step) in field.items():
                for turn in range(TURN):
                    start = time.perf_counter()
                    step()
                    taken = (time.perf_counter() - start) * 1e3
                    samples.setdefault((name, "steady" if turn else "cold"), []).append(taken)
    finally:
        gc.enable()
    return samples


def measure(count: int, repeats: int, named: Collection[str] = ()) -> list[dict[str, Any]]:
    """A row for every provider and state of the caches."""
    field = steps(count, named)
    times = {key: spread(values) for key, values in sample(field, repeats).items()}
    rows = []
    for (name, caches), ms in times.items():
        peers = [other["median"] for (peer, state), other in times.items() if state == caches and OURS not in peer]
        fused = times.get(("torch fused", caches))
        rows.append(
            {
                "bench": "host",
                "optimizer": OPTIMIZER,
                "provider": name,
                "provider_version": field[name][0],
                "shape": [1],
                "storage": STORAGE,
                "tensors": count,
                "parameters": count,
                "caches": caches,
                "ms": {key: round(value, 5) for key, value in ms.items()},
                "us_per_tensor": {key: round(value * 1e3 / count, 3) for key, value in ms.items()},
                "best_peer_over_this": round(min(peers) / ms["median"], 2) if peers else None,
                "bytes_per_param": None,
                "copy_gb_per_s": None,
                "torch_fused_over_this": round(fused["median"] / ms["median"], 2) if fused else None,
            }
        )
    return rows


def main(
    tensors: Annotated[list[int] | None, typer.Option(min=1, help="How many tensors; may be repeated.")] = None,
    providers: Annotated[list[str] | None, naming_providers()] = None,
    repeats: Annotated[int, typer.Option(min=5, help="Turns of each provider.")] = 30,
    json: Annotated[Path | None, results_file("host")] = None,
) -> None:
    """Measure the host time of an AdamW step, beside the peers that are installed, and record it; needs no GPU."""
    if importlib.util.find_spec("triton") is None:
        raise SystemExit("error: the host bench needs triton, which is not installed: pip install triton")
    os.environ["TRITON_INTERPRET"] = "1"  # CPU tensors take the kernels' path; nothing is launched
    import torch

    torch.set_num_threads(1)
    named = chosen_providers(providers)
    table = Table(
        "tensors", "caches", "provider", "µs a tensor", "p20 to p80", "best peer / this", "torch fused / this"
    )
    console = Console()
    for count in tensors or TENSORS:
        with console.status(f"{count} tensors"):
            rows = measure(count, repeats, named)
        path = append("host", rows, json)  # at once, so that an interrupted run keeps what it has measured
        for row in rows:
            cost = row["us_per_tensor"]
            cells = (f"{cost['median']:.2f}", f"{cost['p20']:.2f} to {cost['p80']:.2f}")
            ratios = (f"{row[key] or float('nan'):g}x" for key in ("best_peer_over_this", "torch_fused_over_this"))
            table.add_row(str(count), row["caches"], row["provider"], *cells, *ratios)
    if not table.rows:
        raise SystemExit(f"error: nothing was measured: none of these providers steps {OPTIMIZER} on the CPU")
    print_whole(console, table)
    console.print(f"recorded in {path}")


if __name__ == "__main__":
    typer.run(main)
