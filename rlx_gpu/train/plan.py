"""Which runs a command asks for, and whether each can begin: found out before anything is written."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..table import TABLE
from .checkpoint import load_checkpoint
from .config import TrainConfig, TrainError, optimizer_names
from .data import Corpus
from .loop import rehearse


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    choices: TrainConfig  # with the optimizer in any case, or "all"; a None `lr` becomes the algorithm's example
    out: Path | None  # folder for the results; None is `runs/<optimizer>`
    device: str  # torch's, or "auto" for CUDA where there is one
    data: Path | None  # folder with the text; None is Python's standard library
    resume: bool  # go on from the checkpoint
    overwrite: bool  # start anew even where that loses an unfinished run
    checkpoint_every: int  # steps between checkpoints


@dataclass(frozen=True)
class PlannedRun:
    """One run that can begin: its choices, the folder for its results, and whether it goes on from a checkpoint."""

    config: TrainConfig
    folder: Path
    resume: bool

    @property
    def checkpoint(self) -> Path:
        """Where its checkpoint is, if there is one."""
        return self.folder / "checkpoint.pt"


def make_plan(request: Request, corpus: Corpus, device: torch.device, command: str) -> tuple[Path, list[PlannedRun]]:
    """The folder for what all runs have in common, and the runs, every one of them checked; only then makes folders.

    Args:
        command: the command line without --resume and --overwrite, for the messages.

    Raises:
        TrainError: a run cannot begin, or would replace an unfinished one.
    """
    if request.resume and request.overwrite:
        raise TrainError("--resume goes on with a run and --overwrite replaces it; give one of them")
    names = optimizer_names(request.choices.optimizer)
    everything = len(names) > 1
    out = request.out or Path("runs") / ("all" if everything else names[0].lower())
    runs = []
    for name in names:
        lr = TABLE[name].example_lr if request.choices.lr is None else request.choices.lr
        config = replace(request.choices, optimizer=name, lr=lr, data=corpus.digest)
        folder = out / name.lower() if everything else out
        # A comparison that was stopped has finished some runs, stopped one and not begun the others.
        resume = request.resume and (os.path.exists(folder / "checkpoint.pt") or not everything)
        runs.append(PlannedRun(config, folder, resume))
    if request.resume and not any(run.resume for run in runs):
        raise TrainError(f"there is nothing to resume in {out}: no optimizer has a checkpoint there; leave --resume")
    for run in runs:
        rehearse(run.config, corpus, run.checkpoint if run.resume else None, device)
    if not (request.resume or request.overwrite):
        unfinished = [said for run in runs if (said := unfinished_run(run))]
        if unfinished:
            raise TrainError(
                "\n".join([*unfinished, f"Go on with: {command} --resume", f"Start anew: {command} --overwrite"])
            )
    for folder in (out, *(run.folder for run in runs)):
        make_writable(folder)
    return out, runs


def unfinished_run(run: PlannedRun) -> str:
    """Where the run in the folder stopped, in words; empty if there is none or it reached its last step."""
    if not os.path.exists(run.checkpoint):  # false, too, for a folder that may not be entered
        return ""
    saved = load_checkpoint(run.checkpoint)
    step, steps = saved["step"], saved["config"]["steps"]
    return f"{run.folder} holds an unfinished run, at step {step} of {steps}" if step < steps else ""


def make_writable(folder: Path) -> None:
    """Make a folder if it is missing, and write to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise TrainError(
            f"results cannot be written to {folder} ({error.strerror}); name a folder that can be written with --out"
        ) from error
