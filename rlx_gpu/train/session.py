"""What `rlx-gpu train` does: one run, or every optimizer after the other, with a progress bar and a report."""

from __future__ import annotations

from functools import partial

import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..terminal import print_whole
from .config import TrainError
from .data import Corpus, load_corpus
from .loop import Record, RunResult, train
from .plan import PlannedRun, Request, make_plan
from .report import Summary, sample_text, summarize, table, where, write_chart


def run_session(request: Request, command: str) -> int:
    """Train and report.

    Args:
        request: what to do.
        command: the command line without --resume and --overwrite; what to do next is shown with it.

    Returns:
        The exit code: 0, 1 if every run diverged, or 130 after Ctrl-C.
    """
    console = Console()
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    device = pick_device(request.device)
    corpus = load_corpus(request.data)
    out, runs = make_plan(request, corpus, device, command)
    say(f"Training on {len(corpus.train):,} bytes of Python source on {where(device)}; results go to {out}")
    summaries: list[Summary] = []
    for run in runs:
        if not run.resume and run.checkpoint.exists():
            say(f"The first step replaces the earlier run in {run.folder}")
        result = train_with_progress(console, run, corpus, device, request.checkpoint_every)
        if result.interrupted:
            say(f"\nStopped after step {len(result.history)}; the checkpoint is in {run.folder}.")
            say(f"Go on with: {command} --resume")
            return 130
        summaries.append(summarize(run.config, result))
        if result.diverged:
            say(f"{run.config.optimizer}: {result.diverged}, with --overwrite", style="red")
    drawn = any(summary.history for summary in summaries)
    if drawn:
        write_chart(summaries, out / "loss.png")
    print_whole(console, table(summaries))
    if len(runs) == 1 and not result.diverged:
        console.print(Panel(Text(sample_text(result, request.choices.seed)), title="a sample", title_align="left"))
    if drawn:
        say(f"Loss curve: {out / 'loss.png'}")
    return int(all(summary.note for summary in summaries))


def pick_device(name: str) -> torch.device:
    """The device of a name; refuses one that is not here."""
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


def train_with_progress(
    console: Console, run: PlannedRun, corpus: Corpus, device: torch.device, every: int
) -> RunResult:
    """One run under a progress bar; where the output is no terminal, a line at each validation instead."""
    config = run.config
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
                said = f"{config.optimizer}: step {record['step']}/{config.steps}, loss {record['loss']:.3f}"
                console.print(f"{said}, validation {record['validation_loss']:.3f}", highlight=False)

        return train(config, corpus, run.folder, device=device, resume=run.resume, checkpoint_every=every, on_step=show)
