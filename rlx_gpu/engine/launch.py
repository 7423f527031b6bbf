"""Launches of kernels, counted: by Triton, or on the host in the form that they have there."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch

from ..kernels.arithmetic import LAUNCH_OPTIONS
from .devices import interpreted, on_host

if interpreted():
    from .interpreter import repair

    repair()

launches: Counter[str] = Counter()  # of Triton's, by kernel, since the process began
host_runs: Counter[str] = Counter()  # of the host's forms
_interpreter = threading.RLock()  # it patches Triton's library while it runs a kernel


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
        with _interpreter if interpreted() else nullcontext():
            kernel[grid](*arguments, **{**LAUNCH_OPTIONS, **constants})
        launches[kernel.__name__] += 1


class Launch:
    """A launch that is made step after step, of fixed arguments; None among them stands for each step's workspace.

    Making it compiles the kernel, so that a step that has begun does not fail for that.
    """

    def __init__(self, kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        self.kernel, self.programs, self.arguments, self.constants = kernel, programs, arguments, constants
        self.device: torch.device = arguments[0].device
        self.readers = Readers(self.device, arguments)
        self.workspace = next((place for place, one in enumerate(arguments) if one is None), None)
        if programs:
            self._compile()

    def run(self, workspace: torch.Tensor | None = None) -> None:
        """Launches it on the current stream."""
        self.readers.note()
        launch(self.kernel, self.programs, *self._with(workspace), **self.constants)

    def _compile(self) -> None:
        """Compiles the kernel for these arguments."""
        if on_host(self.device):
            from . import host

            host.compile_for(self.kernel.__name__, self._with(self.arguments[0]), self.constants)
        else:
            arguments = self._with(torch.empty(0, dtype=torch.float32, device=self.device))
            self.kernel.warmup(*arguments, grid=(self.programs,), **{**LAUNCH_OPTIONS, **self.constants})

    def _with(self, workspace: Any) -> tuple[Any, ...]:
        """The arguments with a workspace where one is wanted."""
        if self.workspace is None:
            return self.arguments
        return (*self.arguments[: self.workspace], workspace, *self.arguments[self.workspace + 1 :])


class Readers:
    """The streams that read some tensors made on the current one.

    Memory may be freed while a stream still reads it: the allocator has to be told of every stream but the one that was
    current when it was made, to which it belongs.
    """

    def __init__(self, device: torch.device, tensors: Iterable[Any]) -> None:
        self.device = device
        self.tensors = [one for one in tensors if isinstance(one, torch.Tensor)]
        self.streams = {stream_of(device)}

    def note(self) -> None:
        """Takes note that the current stream reads them."""
        stream = stream_of(self.device)
        if stream not in self.streams:
            for one in self.tensors:
                hold(one)
            self.streams.add(stream)


def stream_of(device: torch.device) -> int | None:
    """The current stream of a GPU, by its address."""
    return torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else None


def hold(tensor: torch.Tensor) -> None:
    """Keeps the tensor's memory from other uses, once it is freed, until the current stream has come this far."""
    tensor.record_stream(torch.cuda.current_stream(tensor.device))
