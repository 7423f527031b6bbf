"""Which runs a command asks for, and whether each can begin: found out before anything is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .checkpoint import load_checkpoint, require_same_config
from .config import TrainConfig, TrainError, optimizer_names
from .data import Corpus
from .loop import rehearse


@dataclass(frozen=True)
class Request:
    """What the command line asked for.

    Args:
        optimizer: a name in any case, or "all".
        choices: the run's other choices; its `optimizer` and `data` are filled in, and a None `lr` becomes the
            algorithm's example.
        out: folder for the results; None is `runs/<optimizer>`.
        device: a torch device, or "auto" for CUDA where there is one.
        data: folder with the text; None is Python's standard library.
        resume: go on from the checkpoint.
        overwrite: start anew even where that loses an unfinished run.
        checkpoint_every: steps between checkpoints.
    """

    optimizer: str
    choices: TrainConfig
    out: Path | None = None
    device: str = "auto"
    data: Path | None = None
    resume: bool = False
    overwrite: bool = False
    checkpoint_every: int = 50


@dataclass(frozen=True)
class PlannedRun:
    """One run that can begin.

    Args:
        config: its choices, all valid.
        folder: for its results.
        resume: go on from the folder's checkpoint, which has the same choices.
    """

    config: TrainConfig
    folder: Path
    resume: bool

    @property
    def checkpoint(self) -> Path:
        """Where its checkpoint is, if there is one."""
        return self.folder / "checkpoint.pt"


@dataclass(frozen=True)
class Plan:
    """All runs of a session.

    Args:
        out: folder for what they have in common.
        runs: in order.
    """

    out: Path
    runs: Sequence[PlannedRun]


def make_plan(request: Request, corpus: Corpus, device: torch.device, command: str) -> Plan:
    """Decide on the runs, and check every one of them; only then make their folders.

    Args:
        request: what was asked for.
        corpus: the text.
        device: where to train.
        command: the command line without --resume and --overwrite, for the messages.

    Raises:
        TrainError: a run cannot begin, or would replace an unfinished one.
    """
    if request.resume and request.overwrite:
        raise TrainError("--resume goes on with a run and --overwrite replaces it; give one of them")
    names = optimizer_names(request.optimizer)
    everything = len(names) > 1
    out = request.out or Path("runs") / ("all" if everything else names[0].lower())
    runs = []
    for name in names:
        lr = learning_rate(name, request.choices.lr)
        config = replace(request.choices, optimizer=name, lr=lr, data=corpus.digest)
        folder = out / name.lower() if everything else out
        # A comparison that was stopped has finished some runs, stopped one and not begun the others.
        resume = request.resume and (os.path.exists(folder / "checkpoint.pt") or not everything)
        runs.append(PlannedRun(config, folder, resume))
    for run in runs:
        rehearse(run.config, corpus, device)
    require_checkpoints(request, out, runs, command)
    for folder in (out, *(run.folder for run in runs)):
        make_writable(folder)
    return Plan(out, runs)


def learning_rate(name: str, asked: float | None) -> float | None:
    """The learning rate asked for, or the one that is known to train the example well."""
    from rlx_gpu.table import TABLE

    return TABLE[name].example_lr if asked is None else asked


def require_checkpoints(request: Request, out: Path, runs: Sequence[PlannedRun], command: str) -> None:
    """Refuse to resume what is not there or was made otherwise, and to lose an unfinished run.

    Raises:
        TrainError: as said; the message has what to do.
    """
    if request.resume:
        resumed = [run for run in runs if run.resume]
        if not resumed:
            raise TrainError(
                f"there is nothing to resume in {out}: no optimizer has a checkpoint there; leave --resume"
            )
        for run in resumed:
            require_same_config(run.checkpoint, load_checkpoint(run.checkpoint)["config"], run.config)
    elif not request.overwrite:
        unfinished = [said for run in runs if (said := unfinished_run(run))]
        if unfinished:
            raise TrainError(
                "\n".join([*unfinished, f"Go on with: {command} --resume", f"Start anew: {command} --overwrite"])
            )


def unfinished_run(run: PlannedRun) -> str:
    """Where the run in the folder stopped, in words; empty if there is none or it reached its last step."""
    if not os.path.exists(run.checkpoint):  # false, too, for a folder that may not be entered
        return ""
    saved = load_checkpoint(run.checkpoint)
    step, steps = saved["step"], saved["config"]["steps"]
    return f"{run.folder} holds an unfinished run, at step {step} of {steps}" if step < steps else ""


def make_writable(folder: Path) -> None:
    """Make a folder if it is missing, and write to it.

    Raises:
        TrainError: that cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise TrainError(
            f"results cannot be written to {folder} ({error.strerror}); name a folder that can be written with --out"
        ) from error
