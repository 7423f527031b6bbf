"""What `rlx-gpu train` does: one run, or every optimizer after the other, with a progress bar and a report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .config import TrainConfig, TrainError, optimizer_names
from .data import Corpus, load_corpus
from .loop import Record, RunResult, train
from .report import Summary, sample_text, summarize, table, where, write_chart


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
        checkpoint_every: steps between checkpoints.
    """

    optimizer: str
    choices: TrainConfig
    out: Path | None = None
    device: str = "auto"
    data: Path | None = None
    resume: bool = False
    checkpoint_every: int = 50


def run_session(request: Request, resume_command: str, console: Console | None = None) -> int:
    """Train and report.

    Args:
        request: what to do.
        resume_command: shown after Ctrl-C.
        console: where to write; None is the standard output.

    Returns:
        The exit code: 0, 1 if every run diverged, or 130 after Ctrl-C.

    Raises:
        TrainError: the request cannot be carried out.
    """
    console = console or Console()
    names = optimizer_names(request.optimizer)
    everything = len(names) > 1
    out = request.out or Path("runs") / ("all" if everything else names[0].lower())
    device = pick_device(request.device)
    corpus = load_corpus(request.data)
    console.print(
        f"Training on {len(corpus.train):,} bytes of Python source on {where(device)}; results go to {out}",
        highlight=False,
    )
    summaries: list[Summary] = []
    result: RunResult | None = None
    for name in names:
        folder = out / name.lower() if everything else out
        config = replace(
            request.choices, optimizer=name, lr=learning_rate(name, request.choices.lr), data=corpus.digest
        )
        # A comparison that was stopped has finished some runs, stopped one and not begun the others.
        resume = request.resume and not (everything and not (folder / "checkpoint.pt").exists())
        warn_of_replaced_run(console, folder, resume)
        result = train_with_progress(console, config, corpus, folder, device, resume, request.checkpoint_every)
        summaries.append(summarize(config, result))
        if result.interrupted:
            step = len(result.history)
            console.print(
                f"\nStopped after step {step}; the checkpoint is in {folder}.", highlight=False, soft_wrap=True
            )
            console.print(f"Go on with: {resume_command}", highlight=False, markup=False, soft_wrap=True)
            return 130
        if result.diverged:
            console.print(Text(f"{name}: {result.diverged}", style="red"), soft_wrap=True)
    if any(summary.history for summary in summaries):
        write_chart(summaries, out / "loss.png")
    console.print(table(summaries))
    if not everything and result is not None and not result.diverged:
        console.print(Panel(Text(sample_text(result, request.choices.seed)), title="a sample", title_align="left"))
    if (out / "loss.png").exists():
        console.print(f"Loss curve: {out / 'loss.png'}", highlight=False, soft_wrap=True)
    return int(all(summary.note for summary in summaries))


def pick_device(name: str) -> torch.device:
    """The device of a name.

    Raises:
        TrainError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainError(f"--device {name!r} is no torch device; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise TrainError(f"--device {name}: the optimizers run on cpu and cuda devices")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices; try `rlx-gpu doctor`")
    return device


def learning_rate(name: str, asked: float | None) -> float | None:
    """The learning rate asked for, or the one that is known to train the example well."""
    from rlx_gpu.table import TABLE

    return TABLE[name].example_lr if asked is None else asked


def train_with_progress(
    console: Console,
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    device: torch.device,
    resume: bool,
    checkpoint_every: int,
) -> RunResult:
    """One run under a progress bar; where the output is no terminal, a line at each validation instead."""
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(config.optimizer, total=config.steps, loss=float("nan"))

        def show(record: Record) -> None:
            progress.update(task, completed=record["step"], loss=record["loss"])
            if not console.is_terminal and "validation_loss" in record:
                console.print(
                    f"{config.optimizer}: step {record['step']}/{config.steps}, loss {record['loss']:.3f},"
                    f" validation {record['validation_loss']:.3f}",
                    highlight=False,
                )

        return train(
            config,
            corpus,
            folder,
            device=device,
            resume=resume,
            checkpoint_every=checkpoint_every,
            on_step=show,
        )


def warn_of_replaced_run(console: Console, folder: Path, resume: bool) -> None:
    """Say so when a new run takes the place of an older one in the same folder."""
    if not resume and (folder / "checkpoint.pt").exists():
        console.print(f"Replacing the earlier run in {folder} (--resume would go on with it)", highlight=False)
