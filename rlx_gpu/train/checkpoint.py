"""One file that holds everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from .config import TrainConfig, TrainError

FORMAT = 1


def replace_file(path: Path, write: Any) -> None:
    """Write a file so that a crash at any moment leaves either the old file or the new one, complete.

    Args:
        path: the file to replace.
        write: called with the open binary file.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Save a run's state with the generators' states, atomically."""
    rng = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
    replace_file(path, lambda file: torch.save({"format": FORMAT, "rng": rng, **contents}, file))


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
        if contents["format"] != FORMAT:
            raise TrainError(f"{path} has format {contents['format']}; this version reads format {FORMAT}")
        missing = {"config", "step", "history", "model", "optimizer", "scheduler", "rng"} - contents.keys()
        if missing:
            raise KeyError(f"it lacks {', '.join(sorted(missing))}")
    except TrainError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainError(f"the checkpoint {path} cannot be read ({reason}); start anew with --overwrite") from error
    return contents


def require_same_config(path: Path, saved: dict[str, Any], config: TrainConfig) -> None:
    """Refuse to go on with a run under other choices than it began with.

    Raises:
        TrainError: a choice differs; the message names the option and both values.
    """
    asked = config.as_dict()
    for option in sorted(saved.keys() | asked.keys()):
        if saved.get(option) == asked.get(option):
            continue
        if option == "data":
            raise TrainError(
                f"cannot resume {path}: it was trained on another text (--data, or another Python's library);"
                " use the same, or start anew with --overwrite"
            )
        raise TrainError(
            f"cannot resume {path}: it was made with --{option} {saved.get(option)}, this run has"
            f" --{option} {asked.get(option)}; give the same value, or start anew with --overwrite"
        )


def restore_rng(saved: dict[str, Any]) -> None:
    """Put torch's generators where they were when the checkpoint was written."""
    torch.set_rng_state(saved["cpu"])
    if torch.cuda.is_available() and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])


def write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    """Write `metrics.jsonl` anew: one JSON object a step."""
    replace_file(path, lambda file: file.write("".join(map(_line, history)).encode()))


def append_metrics(path: Path, record: dict[str, Any]) -> None:
    """Add one step to `metrics.jsonl`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(record))


def _line(record: dict[str, Any]) -> str:
    """One record as one line."""
    return json.dumps(record) + "\n"
