"""One file that holds everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .config import TrainConfig, TrainError

FORMAT = 1
CONTENTS = ("format", "config", "step", "history", "model", "optimizer", "scheduler", "rng")


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that a crash at any moment leaves either the old file or the new one, complete."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Save a run's state, atomically."""
    replace_file(path, lambda file: torch.save({"format": FORMAT, **contents}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        TrainError: there is none, or it cannot be read.
    """
    if not os.path.exists(path):
        raise TrainError(f"there is no checkpoint at {path}; leave --resume to start a run")
    try:
        # weights_only: a checkpoint from a stranger must not be able to run code.
        contents: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if contents["format"] == FORMAT:
            return {key: contents[key] for key in CONTENTS}
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TrainError(f"the checkpoint {path} cannot be read ({reason}); start anew with --overwrite") from error
    raise TrainError(f"{path} has format {contents['format']}; this version reads format {FORMAT}")


def require_config(path: Path, saved: dict[str, Any], config: TrainConfig) -> None:
    """Refuse to go on with a run under other choices than it began with; the error names the option and both values."""
    for option, asked in config.as_dict().items():
        if saved.get(option) != asked:
            what = (
                f"it was made with --{option} {saved.get(option)}, this run has --{option} {asked}; give the same value"
            )
            if option == "data":
                what = "it was trained on another text (--data, or another Python's library); use the same"
            raise TrainError(f"cannot resume {path}: {what}, or start anew with --overwrite")


def write_metrics(path: Path, history: Iterable[dict[str, Any]]) -> None:
    """Write `metrics.jsonl` anew: one JSON object a step."""
    lines = "".join(json.dumps(record) + "\n" for record in history)
    replace_file(path, lambda file: file.write(lines.encode()))


def append_metrics(path: Path, record: dict[str, Any]) -> None:
    """Add one step to `metrics.jsonl`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
