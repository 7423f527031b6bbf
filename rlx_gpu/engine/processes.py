"""Forked processes: the threads of the process that they come from did not come along."""

from __future__ import annotations

import os

import torch

_with_threads: set[int] = set()  # processes whose threads have been started; a fork inherits what was known before it


def note_threads() -> None:
    """Takes note that this process has started threads."""
    _with_threads.add(os.getpid())


def has_lost_threads() -> bool:
    """Whether this process was forked from one that had started threads."""
    return bool(_with_threads) and os.getpid() not in _with_threads


def check_process() -> None:
    """Refuses to step in a forked process whose torch would wait forever for threads that did not come along."""
    if has_lost_threads() and torch.get_num_threads() > 1:
        raise RuntimeError(
            "this process was forked from one whose threads had stepped an optimizer, and has none of them: call "
            "torch.set_num_threads(1) in it, or start processes by spawn or before the first step"
        )
