"""One launch of a kernel, counted: by Triton, or on the host in the form that it has there."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..kernels.arithmetic import LAUNCH_OPTIONS
from .devices import interpreted, on_host

if interpreted():
    from .interpreter import repair

    repair()

launches: Counter[str] = Counter()  # of Triton's, by kernel, since the process began
host_runs: Counter[str] = Counter()  # of the host's forms


def launch(kernel: Any, programs: int | tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Runs a kernel on the device of its first argument, a tensor, on the current stream, unless it has no programs.

    `constants` may hold other launch options.
    """
    grid = (programs,) if isinstance(programs, int) else programs
    if not all(grid):
        return
    if on_host(arguments[0].device):
        from . import host  # with Numba, which only steps on the CPU need

        host.launch(kernel.__name__, grid[0], arguments, constants)
        host_runs[kernel.__name__] += 1
    else:
        kernel[grid](*arguments, **{**LAUNCH_OPTIONS, **constants})
        launches[kernel.__name__] += 1
