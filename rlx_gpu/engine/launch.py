"""One launch of a kernel, counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..kernels.arithmetic import LAUNCH_OPTIONS
from .devices import interpreted

if interpreted():
    from .interpreter import repair

    repair()

launches: Counter[str] = Counter()  # by kernel since the process began


def launch(kernel: Any, programs: int | tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Runs a kernel on the current stream, unless it has no programs; `constants` may hold other launch options."""
    grid = (programs,) if isinstance(programs, int) else programs
    if all(grid):
        kernel[grid](*arguments, **{**LAUNCH_OPTIONS, **constants})
        launches[kernel.__name__] += 1
