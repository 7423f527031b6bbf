"""CUDA graphs, and on the CPU recordings in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from recorder import Recorder


class Graph:
    """What was captured on a device, and replays of it."""

    def __init__(self, device: str) -> None:
        self.recorder = Recorder() if device == "cpu" else None
        self.graph = None if device == "cpu" else torch.cuda.CUDAGraph()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Captures what runs inside."""
        with self.recorder.capture() if self.recorder else torch.cuda.graph(self.graph):
            yield

    def replay(self) -> None:
        """Does what was captured."""
        (self.recorder or self.graph).replay()
