"""CUDA graphs: whether one is being captured, and refusals of what its replays would not repeat."""

from __future__ import annotations

import torch


class CaptureError(RuntimeError):
    """A step that cannot be captured in a CUDA graph; the message says why and what to do. Nothing has been changed."""


def capturing() -> torch.device | None:
    """The device on whose current stream a CUDA graph is being captured."""
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if started and torch.cuda.is_current_stream_capturing():
        return torch.device("cuda", torch.cuda.current_device())
    return None


def refuse_capture(what: str, remedy: str) -> None:
    """Raises a CaptureError while a graph is being captured: `what` is read by the host."""
    if capturing() is not None:
        raise CaptureError(f"{what} cannot be captured in a CUDA graph: {remedy}")
