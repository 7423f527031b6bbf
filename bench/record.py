"""Recording, shared by all benches: one JSON line a measurement, appended and never changed.

Every row has what was measured,

    bench            "elementwise", "matrix", "host", "cpu" or "train": also the file's name under `bench/results/`
    optimizer        a name of `rlx_gpu.TABLE`, or the routine measured ("newton_schulz", "symmetric_product")
    variant          what else was chosen, such as "refresh" or "steady"; absent where there is nothing to choose
    provider         "rlx-gpu", or a peer and its mode, such as "torch fused"
    provider_version    its package's version, ours the commit
    model or shape   a key of `bench.shapes.SHAPES` or another model in words, or a list of sizes
    storage          formats of parameter, gradient and state: a key of `bench.providers.STORAGES`
    tensors, parameters   how many tensors and elements were stepped
    ms               {"median", "p20", "p80"} of one step or call: on a GPU between two events, elsewhere on the host;
                     null where a training run diverged before its second step

and what it depends on: `environment()`, whose date is the run's and equal in all of its rows. The elementwise, matrix
and CPU benches add what follows, null where it was not or cannot be measured:

    bytes_per_param  moved in one step by the compiled kernels; ours only
    gb_per_s, share_of_copy    that traffic over the median, and its share of `copy_gb_per_s`
    copy_gb_per_s    of a device-to-device copy in the same run, read and written
    tflops, share_of_matmul, matmul_tflops   the same for matrix work, in operations of the plain algorithm and against
                     a large bfloat16 product in the same run; absent where operations are not counted
    best_peer_over_this    the fastest peer's median over this row's; above 1 this row is faster
    state_bytes_per_param, peak_extra_bytes_per_param   device memory kept between steps, and needed besides during one
    launches         CUDA kernels of one step
    host_ms          the host's time in one call, the device idle before it

The host bench adds

    caches           "steady", or "cold" in the first step after the others'
    us_per_tensor    `ms` over the tensors, in microseconds
    torch_fused_over_this    the median of torch's fused step over this row's; null where that was not measured
    best_peer_over_this      as above; its bytes_per_param and copy_gb_per_s are null

and the train bench what `bench.train.row` says, and `ran_on`, "cpu" or "cuda".

Rows stay as they were written. The host bench's first three runs lack provider_version, shape, storage, parameters,
ms, best_peer_over_this, bytes_per_param, copy_gb_per_s and driver; the train bench's first run lacks provider_version,
storage, tensors, parameters and sweep_open, and has a `dtype` that is always "float32".

`kernels.jsonl` is derived, not measured: `bench.kernels` replaces it with what the compiler makes of the sources, a row
a kernel, with `arch` and `triton` for an environment.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..doctor import driver_version

RESULTS = Path(__file__).resolve().parent / "results"


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile of at least two samples, none beyond the least and the largest."""
    quantiles = statistics.quantiles(samples, n=5, method="inclusive")
    return {"median": statistics.median(samples), "p20": quantiles[0], "p80": quantiles[-1]}


@functools.cache
def environment() -> dict[str, Any]:
    """What a measurement depends on: time, commit, device and versions, looked up once a process."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "driver": driver_version() if cuda else None,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda if cuda else None,
    }


def append(name: str, rows: Iterable[Mapping[str, Any]], path: Path | None = None) -> Path:
    """Adds rows, each with the environment, to `bench/results/<name>.jsonl`; recorded rows are never changed."""
    path = path or RESULTS / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    where = environment()
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({**row, **where}) + "\n" for row in rows)
    return path


def _version(package: str) -> str | None:
    """An installed package's version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit measured, marked if the sources differ from it; rows and plots made just before are no difference."""
    made = (":(top,exclude)bench/results", ":(top,exclude)bench/plots", ":(top,exclude)README.md")
    try:
        commit = _git("rev-parse", "--short=10", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *made)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    """What git says of the working tree that this file is in."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
