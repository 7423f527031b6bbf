"""Providers side by side: each takes its turn in every round of one run, over the same tensors.

A provider is built, warmed up, timed and dropped in each of its turns, so that only one holds state at a time and a
machine that slows down slows them all.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

from . import providers
from .providers import OURS, STORAGES
from .record import environment, spread
from .timing import Step, host_samples, launches, sampler, synchronize

WARMUP = 2  # steps after the first, whose second is watched for memory
HOST_REPEATS = 3


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        rounds: turns of each provider.
        repeats: timed steps of a turn.
        seconds: of timed steps in a turn, beyond which fewer are taken.
        least: timed steps of a turn, however long they take.
    """

    rounds: int = 2
    repeats: int = 8
    seconds: float = 0.3
    least: int = 3


@dataclass(frozen=True)
class Contender:
    """One provider in a race.

    Args:
        name, version: as rows have them.
        make: builds a new step over the shared tensors.
        bytes_per_param: moved in one step, where that is known.
    """

    name: str
    version: str
    make: Callable[[], Step]
    bytes_per_param: float | None = None


@dataclass
class Result:
    """What a contender's turns gave: milliseconds of steps and of the host's part, bytes, kernel launches."""

    ms: list[float] = field(default_factory=list)
    host_ms: list[float] = field(default_factory=list)
    state_bytes: int | None = None
    peak_bytes: int | None = None
    launches: int | None = None


def parameters(shapes: Sequence[tuple[int, ...]], dtype: str, device: str) -> list[Any]:
    """Random parameters with random gradients."""
    import torch

    kind = getattr(torch, dtype)
    params = [torch.nn.Parameter(torch.randn(shape, device=device, dtype=kind)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def contenders(
    optimizer: str, storage: str, params: Sequence[Any], named: Collection[str] = (), moved: float | None = None
) -> list[Contender]:
    """Ours, and the peers that step these parameters: the quick ones, or those named.

    Args:
        moved: bytes a parameter that ours moves in a step, if known.
    """
    found = []
    if STORAGES[storage].ours is not None and (not named or OURS in named):
        version = environment()["commit"]
        found = [Contender(OURS, version, partial(providers.ours, optimizer, storage, params), moved)]
    peers = providers.peers(optimizer, storage, params[0].device.type, named)
    return found + [
        Contender(peer.name, peer.version, partial(peer.step, optimizer, storage, params)) for peer in peers
    ]


def race(contenders: Sequence[Contender], device: str, effort: Effort) -> tuple[dict[str, Result], dict[str, str]]:
    """Every contender's result, and in words why others have none."""
    results = {contender.name: Result() for contender in contenders}
    failed: dict[str, str] = {}
    gc.collect()
    gc.freeze()  # so that collecting what a turn leaves behind takes no time
    try:
        for turn, contender in product(range(effort.rounds), contenders):
            if contender.name not in failed:
                try:
                    take_turn(contender.make, results[contender.name], device, effort, last=turn == effort.rounds - 1)
                except Exception as error:
                    failed[contender.name] = in_words(error)
                    del results[contender.name]
                gc.collect()
    finally:
        gc.unfreeze()
    return results, failed


def in_words(error: Exception) -> str:
    """An error in one line; the error itself would keep the memory of the step that failed."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def take_turn(make: Callable[[], Step], result: Result, device: str, effort: Effort, *, last: bool) -> None:
    """Builds a step and adds one turn's samples to its result."""
    held = allocated(device)
    step = make()
    step()
    synchronize()
    if device == "cuda":
        result.state_bytes, result.peak_bytes = allocated(device) - held, temporaries(step)
    for _ in range(WARMUP - 1):
        step()
    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    seconds = time.perf_counter() - start
    repeats = max(min(effort.repeats, int(effort.seconds / seconds)), effort.least)
    result.ms += sampler(device)(step, repeats)
    result.host_ms += host_samples(step, HOST_REPEATS) if device == "cuda" else []
    if last and device == "cuda":
        result.launches = launches(step)


def allocated(device: str) -> int:
    """Bytes of device memory in use by tensors."""
    import torch

    return torch.cuda.memory_allocated() if device == "cuda" else 0


def temporaries(step: Step) -> int:
    """Bytes that a step needs beside what is held between steps."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held


def rows(
    case: Mapping[str, Any], contenders: Sequence[Contender], results: Mapping[str, Result]
) -> list[dict[str, Any]]:
    """A row for each result, without the environment.

    Args:
        case: what was measured, among it `parameters` and, on a GPU, `copy_gb_per_s`.
        contenders: who took part.
        results: by name.
    """
    times = {name: spread(result.ms) for name, result in results.items()}
    best = min((time["median"] for name, time in times.items() if not name.startswith(OURS)), default=None)
    return [
        {
            **case,
            "provider": contender.name,
            "provider_version": contender.version,
            "ms": {key: round(value, 4) for key, value in times[contender.name].items()},
            **traffic(contender.bytes_per_param, case, times[contender.name]["median"]),
            "best_peer_over_this": best and round(best / times[contender.name]["median"], 3),
            **costs(results[contender.name], case["parameters"]),
        }
        for contender in contenders
        if contender.name in results
    ]


def traffic(moved: float | None, case: Mapping[str, Any], ms: float) -> dict[str, Any]:
    """What follows from the bytes a step moves: its bandwidth, and the share of a copy's."""
    if moved is None:
        return {"bytes_per_param": None, "gb_per_s": None, "share_of_copy": None}
    rate = moved * case["parameters"] / ms / 1e6
    share = rate / case["copy_gb_per_s"]
    return {"bytes_per_param": moved, "gb_per_s": round(rate, 1), "share_of_copy": round(share, 4)}


def costs(result: Result, parameters: int) -> dict[str, Any]:
    """What a step costs beside its time; null on a CPU."""
    state, peak = (
        None if value is None else round(value / parameters, 3) for value in (result.state_bytes, result.peak_bytes)
    )
    host = round(spread(result.host_ms)["median"], 4) if result.host_ms else None
    return {
        "state_bytes_per_param": state,
        "peak_extra_bytes_per_param": peak,
        "launches": result.launches,
        "host_ms": host,
    }
