"""The words that steer a step on its device, and what the host learns of skipped steps without waiting."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from .launch_tables import upload

IN_FLIGHT = 32  # steps of unknown outcome before the host waits for the oldest


class Control:
    """Three float32 words on one device (gradient factor, skip flag, row offset) and the count of skipped steps."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.words = upload(np.array([1.0, 0.0, 0.0], dtype=np.float32), device)
        self.skipped = torch.zeros(1, dtype=torch.int32, device=device)
        self._scale: float | None = 1.0

    def set_scale(self, scale: float | torch.Tensor) -> None:
        """The factor on every gradient of the next step: a number, or a tensor of one element that is not read here."""
        if isinstance(scale, torch.Tensor):
            self.words[:1].copy_(scale.detach().reshape(1), non_blocking=True)
            self._scale = None
        elif scale != self._scale:
            self.words = upload(np.array([scale, 0.0, 0.0], dtype=np.float32), self.device)
            self._scale = scale


class SkipLedger:
    """How many steps a device has skipped, as far as the host knows.

    After each step the device's count is copied to the host behind an event; `collect` reads the copies that have
    arrived.
    """

    def __init__(self) -> None:
        self.known = 0
        self._reports: deque[tuple[torch.cuda.Event | None, torch.Tensor]] = deque()

    @property
    def pending(self) -> int:
        """Steps whose outcome is not known yet."""
        return len(self._reports)

    def report(self, skipped: torch.Tensor) -> None:
        """Sends the device's count on its way."""
        if skipped.device.type == "cpu":
            self._reports.append((None, skipped.clone()))
            return
        count = torch.empty(1, dtype=torch.int32, pin_memory=True)
        count.copy_(skipped, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(skipped.device))  # of the copy, whichever device is the current one
        self._reports.append((event, count))

    def collect(self, *, wait: bool = False) -> int:
        """How many more steps turned out to be skipped; with `wait`, until nothing is pending."""
        before = self.known
        while self._reports and self._arrived(wait or self.pending >= IN_FLIGHT):
            self.known = int(self._reports.popleft()[1])
        return self.known - before

    def _arrived(self, wait: bool) -> bool:
        event = self._reports[0][0]
        if event is not None and wait:
            event.synchronize()
        return event is None or bool(event.query())  # type: ignore[no-untyped-call]
