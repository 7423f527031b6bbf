"""What a bench shows while it runs and at its end; rows are recorded the moment they are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..terminal import print_whole
from .providers import OURS
from .record import append
from .rows import Row, task

NOTHING = "–"


class Report:
    """A bench's progress bar, its recorded rows and, when it ends or is interrupted, their table.

    Args:
        bench: as in the rows.
        steps: how many steps the progress bar has.
        path: the file to append to; None for the bench's own.
    """

    def __init__(self, bench: str, steps: int, path: Path | None = None) -> None:
        self.bench, self.path = bench, path
        self.rows: list[Row] = []
        self.faults: list[str] = []
        self.notes: list[str] = []
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=self.console, transient=True)
        self.task = self.progress.add_task("Starting", total=steps)
        self.now = ""

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        console = Console()
        if self.rows:
            print_whole(console, table(self.rows))
        for note in self.notes:
            console.print(note, markup=False, highlight=False)
        for fault in self.faults:
            self.console.print(f"error: {fault}", markup=False, highlight=False)
        if error is None and not self.rows and not self.faults:
            self.console.print("error: nothing was measured: none of these providers does this", highlight=False)
        if error is None and (self.faults or not self.rows):
            raise typer.Exit(1)

    def begin(self, what: str) -> None:
        """Says what is being done."""
        self.now = what
        self.progress.update(self.task, description=what)

    def finish(self, rows: Sequence[Row] = (), failed: Mapping[str, str] | None = None) -> None:
        """Ends a step of the bar, records its rows and notes who failed."""
        if rows:
            path = append(self.bench, rows, self.path)
            if not self.rows:
                self.notes.append(f"recorded in {path}")
            self.rows += rows
        for name, error in (failed or {}).items():
            (self.faults if name.startswith(OURS) else self.notes).append(f"{name} failed in {self.now}: {error[:200]}")
        self.progress.advance(self.task)


def table(rows: Sequence[Row]) -> Table:
    """Rows as a table, without the columns that are empty in all of them."""
    cells = [{title: cell(row) for title, cell in COLUMNS.items()} for row in rows]
    shown = [title for title in COLUMNS if any(line[title] != NOTHING for line in cells)]
    drawn = Table(box=box.SIMPLE_HEAD)
    for title in shown:
        left = title in ("on", "optimizer", "storage", "provider")
        drawn.add_column(title, justify="left" if left else "right", no_wrap=True)
    for line in cells:
        drawn.add_row(*(line[title] for title in shown))
    return drawn


def number(key: str) -> Callable[[Row], str]:
    """How a column shows the number under a key, or that there is none."""
    return lambda row: NOTHING if row.get(key) is None else f"{row[key]:g}"


def percent(key: str) -> Callable[[Row], str]:
    """How a column shows a share."""
    return lambda row: NOTHING if row.get(key) is None else f"{row[key]:.0%}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "on": lambda row: row.get("model") or "×".join(map(str, row["shape"])),
    "optimizer": task,
    "storage": lambda row: str(row["storage"]),
    "provider": lambda row: str(row["provider"]),
    "ms": lambda row: f"{row['ms']['median']:.3f}",
    "p20": lambda row: f"{row['ms']['p20']:.3f}",
    "p80": lambda row: f"{row['ms']['p80']:.3f}",
    "B/param": number("bytes_per_param"),
    "of a copy": percent("share_of_copy"),
    "TFLOP/s": number("tflops"),
    "peer/this": number("best_peer_over_this"),
    "launches": number("launches"),
    "host ms": number("host_ms"),
    "state B": number("state_bytes_per_param"),
    "extra B": number("peak_extra_bytes_per_param"),
}
