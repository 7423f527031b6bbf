"""How time is taken: between events on a GPU, by the clock on a CPU; and the machine's own rates, to compare with."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from .record import spread

Step = Callable[[], Any]
Sampler = Callable[[Step, int], list[float]]
CACHE_BYTES = 2**28  # overwritten before each timed step, so that no L2 cache holds anything of it
COPY_BYTES, MATMUL_SIZE = 2**31, 8192
CEILING_REPEATS = 10
NO_KERNELS = ("Memcpy", "Memset", "Optimizer.")  # other events on the device's timeline


@functools.cache
def cache_filler() -> Any:
    """A buffer larger than the L2 cache."""
    import torch

    return torch.empty(CACHE_BYTES, dtype=torch.uint8, device="cuda")


def device_samples(step: Step, repeats: int) -> list[float]:
    """Milliseconds between events around each step, steps queued one behind the other.

    The cache is cleared between steps, outside the events, as `triton.testing.do_bench` does it. What the host cannot
    hide behind the device's work is included.
    """
    import torch

    filler, make_event = cache_filler(), torch.cuda.Event
    events: list[Any] = [[make_event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]  # type: ignore[no-untyped-call]
    for start, end in events:
        filler.zero_()
        start.record()
        step()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def host_samples(step: Step, repeats: int) -> list[float]:
    """Milliseconds until each call returns; on a GPU the device is idle when it begins."""
    samples = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        step()
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def this_arch() -> str:
    """The GPU's architecture, such as "sm_90"; ends the program where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("error: this bench needs a CUDA device; `rlx-gpu doctor` says what is missing")
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


def sampler(device: str) -> Sampler:
    """How a step is timed on "cuda" or "cpu"."""
    return device_samples if device == "cuda" else host_samples


def copy_bandwidth() -> float:
    """GB/s of a device-to-device copy of 2 GiB, read and written."""
    import torch

    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    device_samples(lambda: target.copy_(source), 3)
    return 2 * COPY_BYTES / median(lambda: target.copy_(source)) / 1e6


def matmul_rate() -> float:
    """TFLOP/s of a large bfloat16 product of random matrices."""
    import torch

    a, b = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE, dtype=torch.bfloat16, device="cuda")
    out = torch.empty_like(a)
    device_samples(lambda: torch.mm(a, b, out=out), 3)
    return 2 * MATMUL_SIZE**3 / median(lambda: torch.mm(a, b, out=out)) / 1e9


def median(step: Step) -> float:
    """Median milliseconds of a step that has been warmed up."""
    return spread(device_samples(step, CEILING_REPEATS))["median"]


def launches(step: Step) -> int | None:
    """CUDA kernels that one step runs; None where the profiler sees none, as without access to the counters."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            step()
            torch.cuda.synchronize()
    except (AssertionError, RuntimeError):
        return None
    on_device = [event for event in trace.events() or () if event.device_type.name == "CUDA"]
    return sum(not (event.is_user_annotation or event.name.startswith(NO_KERNELS)) for event in on_device) or None
