"""What `rlx-gpu train` does: one run, or every optimizer after the other, with a progress bar and a report."""

from __future__ import annotations

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


def run_session(request: Request, command: str, console: Console | None = None) -> int:
    """Train and report.

    Args:
        request: what to do.
        command: the command line without --resume and --overwrite; what to do next is shown with it.
        console: where to write; None is the standard output.

    Returns:
        The exit code: 0, 1 if every run diverged, or 130 after Ctrl-C.

    Raises:
        TrainError: the request cannot be carried out.
    """
    console = console or Console()
    device = pick_device(request.device)
    corpus = load_corpus(request.data)
    plan = make_plan(request, corpus, device, command)
    console.print(
        f"Training on {len(corpus.train):,} bytes of Python source on {where(device)}; results go to {plan.out}",
        highlight=False,
    )
    summaries: list[Summary] = []
    result: RunResult | None = None
    for run in plan.runs:
        if not run.resume and run.checkpoint.exists():
            console.print(f"The first step replaces the earlier run in {run.folder}", highlight=False, soft_wrap=True)
        result = train_with_progress(console, run, corpus, device, request.checkpoint_every)
        summaries.append(summarize(run.config, result))
        if result.interrupted:
            step = len(result.history)
            console.print(
                f"\nStopped after step {step}; the checkpoint is in {run.folder}.", highlight=False, soft_wrap=True
            )
            console.print(f"Go on with: {command} --resume", highlight=False, markup=False, soft_wrap=True)
            return 130
        if result.diverged:
            console.print(
                Text(f"{run.config.optimizer}: {result.diverged}, with --overwrite", style="red"), soft_wrap=True
            )
    chart = plan.out / "loss.png" if any(summary.history for summary in summaries) else None
    if chart:
        write_chart(summaries, chart)
    print_whole(console, table(summaries))
    if len(plan.runs) == 1 and result is not None and not result.diverged:
        console.print(Panel(Text(sample_text(result, request.choices.seed)), title="a sample", title_align="left"))
    if chart:
        console.print(f"Loss curve: {chart}", highlight=False, soft_wrap=True)
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


def train_with_progress(
    console: Console, run: PlannedRun, corpus: Corpus, device: torch.device, checkpoint_every: int
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
                console.print(
                    f"{config.optimizer}: step {record['step']}/{config.steps}, loss {record['loss']:.3f},"
                    f" validation {record['validation_loss']:.3f}",
                    highlight=False,
                )

        return train(
            config,
            corpus,
            run.folder,
            device=device,
            resume=run.resume,
            checkpoint_every=checkpoint_every,
            on_step=show,
        )
