"""What a person sees of a run: the chart, the table and a sample of text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from ..engine.devices import interpreted, on_host
from ..optim import state_bytes
from .checkpoint import replace_file
from .config import TrainConfig
from .loop import Record, RunResult

LAST = 20
PROMPT = b"def "
SAMPLE_BYTES = 400
# Eleven hues that stay apart on white, in an order that keeps neighbours unlike.
COLORS = (
    *("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17a2b8"),
    *("#8c564b", "#e377c2", "#5f6b2f", "#1b1f6b", "#7f7f7f"),
)


@dataclass(frozen=True)
class Summary:
    """One run in numbers, without its model."""

    config: TrainConfig
    history: Sequence[Record]
    parameters: int  # numbers in the model
    state_bytes: int
    where: str  # the device and the path that the optimizer took on it
    note: str = ""  # why the run did not reach its last step

    @property
    def end_loss(self) -> float:
        """The mean training loss of the last 20 steps, in nats a byte."""
        return statistics.fmean(record["loss"] for record in self.history[-LAST:])

    @property
    def validation_loss(self) -> float | None:
        """The newest validation loss, in nats a byte."""
        return next((r["validation_loss"] for r in reversed(self.history) if "validation_loss" in r), None)


def summarize(config: TrainConfig, result: RunResult) -> Summary:
    """The numbers of a run that ended by itself."""
    run = result.run
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    note = f"diverged at step {len(result.history) + 1}" if result.diverged else ""
    return Summary(config, result.history, parameters, state_bytes(run.optimizer), where(run.device), note)


def where(device: torch.device) -> str:
    """The device, and which implementation of the optimizers it gets."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if on_host(device):
        return name
    return f"{name} (Triton, interpreted)" if interpreted() else f"{name} (Triton)"


def table(summaries: Sequence[Summary]) -> Table:
    """A row a run; the best validation loss is in bold."""
    made = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=0)
    made.add_column("optimizer", no_wrap=True)
    for heading in ("lr", "loss\nstart", "loss\nend", "loss\nvalid.", "step\nms", "update\nms", "state\nB/param"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("device", min_width=14)
    finished = [s.validation_loss for s in summaries if s.validation_loss is not None and not s.note]
    for summary in summaries:
        history = summary.history
        if not history:
            made.add_row(summary.config.optimizer, *["–"] * 7, summary.note)
            continue
        validation = summary.validation_loss
        best = len(finished) > 1 and not summary.note and validation == min(finished)
        made.add_row(
            summary.config.optimizer,
            "own" if summary.config.lr is None else f"{summary.config.lr:g}",
            f"{history[0]['loss']:.3f}",
            f"{summary.end_loss:.3f}",
            "–" if validation is None else f"{validation:.3f}",
            f"{statistics.median(record['step_ms'] for record in history):.1f}",
            f"{statistics.median(record['optimizer_ms'] for record in history):.1f}",
            f"{summary.state_bytes / summary.parameters:.2f}",
            summary.note or summary.where,
            style="bold" if best else None,
        )
    return made


def smoothed(losses: Sequence[float], half: int) -> list[float]:
    """At each step the mean of its loss and the `half` before and after it, at first of fewer on each side."""
    reaches = [min(half, i) for i in range(len(losses))]
    return [statistics.fmean(losses[i - reach : i + reach + 1]) for i, reach in enumerate(reaches)]


def write_chart(summaries: Sequence[Summary], path: Path) -> None:
    """Draw the loss of every run against the step, as a PNG.

    One run shows each step faintly, the running mean and the validation losses; several show their running means, each
    named at its end with its mean loss over the last 20 steps.
    """
    drawn = [summary for summary in summaries if summary.history]
    alone = len(drawn) == 1
    last_step = max(len(summary.history) for summary in drawn)
    half = last_step // 40
    figure = Figure(figsize=(9, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, summary in enumerate(drawn):
        color = COLORS[index % len(COLORS)]
        steps = [record["step"] for record in summary.history]
        losses = [record["loss"] for record in summary.history]
        if alone:
            axes.plot(steps, losses, color=color, alpha=0.3, linewidth=1, label="training, each step")
        # Dashes over lines: two optimizers that agree, as Adam and AdamW do at first, both stay visible.
        style, order = ("--", 3) if index % 2 else ("-", 2)
        means = smoothed(losses, half)
        label = f"training, {mean_of(half)}"
        axes.plot(steps, means, color=color, linewidth=2, linestyle=style, zorder=order, label=label)
        validated = [(r["step"], r["validation_loss"]) for r in summary.history if "validation_loss" in r]
        if alone and validated:
            axes.plot(*zip(*validated, strict=True), "o", color="#222222", label="validation", clip_on=False)
    lowest = min(record["loss"] for summary in drawn for record in summary.history)
    # All runs start near the entropy of random bytes, 5.5; a diverging run must not flatten the others.
    axes.set_ylim(lowest * 0.93, 5.8)
    axes.set_xlim(0, last_step)
    config, size = drawn[0].config, f"{drawn[0].parameters:,} parameters"
    if alone:
        axes.legend(frameon=False)
        title = f"{config.optimizer}: a byte-level GPT of {size}"
    else:
        ends = [(s.end_loss, s.config.optimizer, COLORS[i % len(COLORS)]) for i, s in enumerate(drawn)]
        label_ends(axes, ends, last_step)
        title = f"{len(drawn)} optimizers, the same byte-level GPT of {size}, seed and batches"
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_xlabel(f"step ({config.batch_size} sequences of {config.model.context} bytes each)")
    axes.set_ylabel("loss (nats per byte)" if alone else f"loss (nats per byte, {mean_of(half)})")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    replace_file(path, lambda file: figure.savefig(file, format="png"))


def mean_of(half: int) -> str:
    """How `smoothed` is named in the chart."""
    return f"mean of {2 * half + 1} steps" if half else "each step"


def label_ends(axes: Any, ends: Sequence[tuple[float, str, str]], step: int) -> None:
    """Write each curve's name and end right of it, moved just enough that no two overlap."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.045
    ends = sorted((min(loss, high), name, color) for loss, name, color in ends)
    heights = list(accumulate((loss for loss, *_ in ends), lambda below, loss: max(loss, below + gap)))
    # What that pushed beyond the top comes down again, with what it meets on the way.
    heights = list(accumulate(reversed(heights), lambda above, height: min(height, above - gap), initial=high + gap))
    for (loss, name, color), height in zip(ends, reversed(heights[1:]), strict=True):
        axes.annotate(
            f"{name}  {loss:.2f}",
            xy=(step, loss),
            xytext=(step * 1.04, height),
            color=color,
            va="center",
            fontsize=9.5,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.6, "linewidth": 0.8, "relpos": (0, 0.5)},
        )


def sample_text(result: RunResult, seed: int) -> str:
    """Text that the model continues `PROMPT` with; bytes that cannot be shown become replacement characters."""
    text = result.run.model.sample(PROMPT, SAMPLE_BYTES, seed).decode(errors="replace")
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text.expandtabs(4))
