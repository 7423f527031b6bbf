"""The text: Python's own standard library, which every machine that runs this has, so nothing is downloaded."""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .config import TrainError

VALIDATION_EVERY = 20


@dataclass(frozen=True)
class Corpus:
    """The bytes to train on and the bytes to validate on, each of one dimension."""

    train: NDArray[np.uint8]
    validation: NDArray[np.uint8]  # files that `train` has nothing of
    digest: str  # of both, to tell one text from another

    def require_context(self, context: int) -> None:
        """Refuse windows, of `context` bytes and the one after it, longer than the shorter of the two texts."""
        shorter = min(len(self.train), len(self.validation))
        if context >= shorter:
            raise TrainError(
                f"--context must be below {shorter}, the bytes of the text's shorter part, not {context};"
                " or name a folder with more *.py files with --data"
            )


def load_corpus(folder: Path | None = None, smallest: int = 20_000) -> Corpus:
    """Read every `*.py` file directly in a folder, in the order of the names, each 20th for validation.

    Args:
        folder: where to read; None is this Python's standard library, of which a distribution may ship no source.
        smallest: bytes that each of the two parts must have.

    Raises:
        TrainError: a file cannot be read, or the folder has too little Python source.
    """
    folder = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    files = sorted(folder.glob("*.py"), key=lambda file: file.name)
    try:
        texts = [file.read_bytes() for file in files]
    except OSError as error:
        raise TrainError(
            f"{error.filename} cannot be read ({error.strerror}); name another folder with --data"
        ) from error
    train = b"".join(text for i, text in enumerate(texts) if (i + 1) % VALIDATION_EVERY)
    validation = b"".join(texts[VALIDATION_EVERY - 1 :: VALIDATION_EVERY])
    if min(len(train), len(validation)) < smallest:
        raise TrainError(
            f"{folder} has {len(files)} Python source files with {len(train) + len(validation)} bytes in all,"
            " too little to train on; name a folder with more *.py files with --data"
        )
    digest = hashlib.sha256(train + b"\0" + validation).hexdigest()[:16]
    return Corpus(np.frombuffer(train, np.uint8), np.frombuffer(validation, np.uint8), digest)


def batch(text: NDArray[np.uint8], seed: int, step: int, batch_size: int, context: int) -> torch.Tensor:
    """The batch of one step, int64 [batch_size, context + 1]: of (seed, step) alone, so a resumed run sees the same."""
    starts = np.random.default_rng([seed, step]).integers(0, len(text) - context, size=batch_size)
    return _windows(text, starts, context)


def validation_batches(text: NDArray[np.uint8], batch_size: int, context: int, count: int = 8) -> list[torch.Tensor]:
    """The same `count` batches for every run: windows spread evenly over the validation text."""
    starts = np.linspace(0, len(text) - context - 1, num=count * batch_size).astype(np.int64)
    return [_windows(text, part, context) for part in np.split(starts, count)]


def _windows(text: NDArray[np.uint8], starts: NDArray[np.int64], context: int) -> torch.Tensor:
    """The windows of `context + 1` bytes that begin at `starts`."""
    return torch.from_numpy(text[starts[:, None] + np.arange(context + 1)].astype(np.int64))
