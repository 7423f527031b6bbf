"""The charts: for each, the recorded rows it shows and how they are drawn. Nothing here is typed in."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import rows as recorded
from . import train_rows
from .providers import OURS
from .rows import Row, measured, task
from .train_rows import OWN_RULE, edge_in_words, lr_in_words, spread_in_words, standing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PLOTS = Path(__file__).resolve().parent / "plots"
Grid = dict[str, dict[str, dict[str, float]]]
Place = tuple[float, float, str]


@dataclass(frozen=True)
class Chart:
    """One picture.

    Args:
        alt: what it shows, in a sentence for who cannot see it.
        select: the rows it shows, of the files in a folder; empty if there is nothing to draw.
        draw: the picture of these rows.
    """

    alt: str
    select: Callable[[Path], list[Row]]
    draw: Callable[[list[Row]], Figure]


def grouped(rows: list[Row], panel: Callable[[Row], str], group: Callable[[Row], str]) -> Grid:
    """panel -> group -> provider -> median milliseconds."""
    grid: Grid = {}
    for row in rows:
        grid.setdefault(panel(row), {}).setdefault(group(row), {})[row["provider"]] = row["ms"]["median"]
    return grid


def draw_roofline(rows: list[Row]) -> Figure:
    """Time over bytes, each for a parameter, a panel a storage; the line is a copy. Peers stand at our bytes."""
    from . import drawing

    storages = sorted({row["storage"] for row in rows}, reverse=True)
    copy = statistics.median(row["copy_gb_per_s"] for row in rows)
    palette = drawing.colors(row["provider"] for row in rows)
    figure, panels = drawing.panels(len(storages), 2, (5.6, 4.4))
    for axes, storage in zip(panels, storages, strict=True):
        points = roofline_points([row for row in rows if row["storage"] == storage])
        roofline_axes(axes, [point for found in points.values() for point in found], storage)
        left, right = axes.get_xlim()
        axes.plot([left, right], [1e3 * left / copy, 1e3 * right / copy], color=drawing.QUIET, linewidth=1, zorder=1)
        for provider, found in points.items():
            size, order = (7, 4) if provider == OURS else (5.5, 3)
            places = zip(*((x, y) for x, y, _ in found), strict=True)
            axes.plot(*places, "o", color=palette[provider], markersize=size, zorder=order)
        leftmost = {provider: min(found)[:2] for provider, found in points.items() if provider != OURS}
        drawing.label(axes, [(*end, name, palette[name]) for name, end in leftmost.items()], offset=-0.04)
        stacks = {at: textwrap.fill(", ".join(names), 16) for at, names in together(points[OURS]).items()}
        line = (right, 1e3 * right / copy, f"a copy, {copy:,.0f} GB/s", drawing.QUIET)
        drawing.label(axes, [*((*at, names, drawing.BLUE) for at, names in stacks.items()), line], column=1.03)
    panels[0].set_ylabel("picoseconds per parameter")
    bytes_read = "Bytes read and written by rlx-gpu's kernels; peers are drawn at these."
    drawing.head(
        figure,
        "Time of a step against the bytes it moves (blue: rlx-gpu)",
        f"{measured(rows)} {rows[0]['model']}. {bytes_read}",
    )
    return figure


def roofline_points(rows: list[Row]) -> dict[str, list[Place]]:
    """provider -> (bytes a parameter, picoseconds a parameter, optimizer), rows of one storage."""
    moved = {row["optimizer"]: row["bytes_per_param"] for row in rows if row["provider"] == OURS}
    points: dict[str, list[Place]] = {}
    for row in rows:
        time = 1e9 * row["ms"]["median"] / row["parameters"]
        points.setdefault(row["provider"], []).append((moved[row["optimizer"]], time, row["optimizer"]))
    return points


def roofline_axes(axes: Any, points: list[Place], storage: str) -> None:
    """Logarithmic axes around the points, with room for labels at their left."""
    from . import drawing

    across, up = [x for x, _, _ in points], [y for _, y, _ in points]
    axes.set(xscale="log", yscale="log", xlabel="bytes per parameter")
    axes.set(xlim=(min(across) / 2.6, max(across) * 1.25), ylim=(min(up) / 1.5, max(up) * 1.3))
    drawing.plain_ticks(axes.xaxis, drawing.round_numbers(*axes.get_xlim()))
    drawing.plain_ticks(axes.yaxis, drawing.round_numbers(*axes.get_ylim()))
    axes.set_title(storage, loc="left")
    axes.grid()


def together(points: list[Place]) -> dict[tuple[float, float], list[str]]:
    """(x, y) -> the names that stand there, as far as a dot can tell: equal x, and y within 4%."""
    found: dict[tuple[float, float], list[str]] = {}
    for x, y, name in sorted(points):
        near = next((at for at in found if at[0] == x and y < 1.04 * at[1]), (x, y))
        found.setdefault(near, []).append(name)
    return found


def draw_steps(rows: list[Row]) -> Figure:
    """A whole step by optimizer and model, ours beside peers."""
    from . import drawing

    by_size = sorted(rows, key=lambda row: row["parameters"])
    models = {row["model"]: row["parameters"] for row in by_size}
    grid = grouped(by_size, task, lambda row: str(row["model"]))
    sizes = ", ".join(f"{name} {count / 1e6:,.0f} million" for name, count in models.items())
    note = f"{measured(rows)} Right of each line: the time of rlx-gpu. Parameters: {sizes}."
    return drawing.dot_plot("Time of a whole float32 step, relative to rlx-gpu", note, grid, columns=4, width=2.75)


def draw_matrix_steps(rows: list[Row]) -> Figure:
    """A whole step of the matrix optimizers, ours beside peers, a panel a storage."""
    from . import drawing

    grid = grouped(rows, lambda row: str(row["storage"]), lambda row: f"{task(row)}, {row['model']}")
    note = f"{measured(rows)} Right of each line: the time of rlx-gpu."
    return drawing.dot_plot("Time of a matrix optimizer's step, relative to rlx-gpu", note, grid, columns=2, width=6.5)


def draw_newton_schulz(rows: list[Row]) -> Figure:
    """Orthogonalisation by shape, a panel a storage."""
    from . import drawing

    grid = grouped(rows, lambda row: str(row["storage"]), lambda row: " × ".join(map(str, row["shape"])))
    note = f"{measured(rows)} Right of each line: the time of rlx-gpu."
    return drawing.dot_plot("Time of Newton–Schulz by shape, relative to rlx-gpu", note, grid, columns=2, width=6.5)


def draw_host(rows: list[Row]) -> Figure:
    """Host time of a tensor over the number of tensors, steady and with cold caches."""
    from . import drawing

    palette = drawing.colors(row["provider"] for row in rows)
    states = [caches for caches in ("steady", "cold") if any(row["caches"] == caches for row in rows)]
    figure, panels = drawing.panels(len(states), 2, (5.0, 3.4), sharey=True)
    counts = sorted({row["tensors"] for row in rows})
    for axes, caches in zip(panels, states, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            if row["caches"] == caches:
                lines.setdefault(row["provider"], []).append((row["tensors"], row["us_per_tensor"]["median"]))
        axes.set(xscale="log", xlabel="tensors", ylim=(0, 1.08 * max(r["us_per_tensor"]["median"] for r in rows)))
        for provider, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), "o-", color=palette[provider], markersize=4.5, linewidth=1.8)
        drawing.plain_ticks(axes.xaxis, counts)
        axes.set_title("steady" if caches == "steady" else "with cold caches", loc="left")
        axes.grid(axis="y")
        ends = [(*max(points), provider, palette[provider]) for provider, points in lines.items()]
        drawing.label(axes, ends, gap=0.07)
    panels[0].set_ylabel("microseconds per tensor")
    drawing.head(figure, f"Host time of a step ({rows[0]['optimizer']})", measured(rows))
    return figure


def draw_train(rows: list[Row]) -> Figure:
    """Validation loss over training time: a panel an optimizer, all seeds, the others behind in grey."""
    from . import drawing

    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["optimizer"], []).append(row)
    target, names = rows[0]["target_loss"], sorted(runs, key=lambda name: standing(runs[name]))
    columns = 5
    figure, panels = drawing.panels(len(names), columns, (2.15, 1.95), sharex=True, sharey=True)
    curves = {
        name: [list(zip(*row["curve"][1:], strict=True)) for row in found if len(row["curve"]) > 1]
        for name, found in runs.items()
    }
    ends = [(seconds[0], seconds[-1]) for found in curves.values() for seconds, _, _ in found]
    first, last = min(start for start, _ in ends), max(end for _, end in ends)
    lowest = min(loss for row in rows for _, _, loss in row["curve"])
    for axes, name in zip(panels, names, strict=True):
        for seconds, _, losses in (found[0] for other, found in curves.items() if found and other != name):
            axes.plot(seconds, losses, color=drawing.FAINT, linewidth=0.7, zorder=1)
        for seconds, _, losses in curves[name]:
            axes.plot(seconds, losses, color=drawing.BLUE, linewidth=1, zorder=3)
        axes.axhline(target, color=drawing.QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
        # Untrained, all are near the entropy of random bytes, 5.5; where they differ is far below.
        axes.set(xscale="log", xlim=(first, last * 1.15), ylim=(lowest - 0.1, lowest + 2.2))
        drawing.plain_ticks(axes.xaxis, drawing.round_numbers(first, last))
        axes.set_title(name, loc="left", fontsize=10, fontweight="bold")
        lr = lr_in_words(runs[name][0])
        axes.set_title(lr if lr == OWN_RULE else f"lr {lr}", loc="right", fontsize=8, color=drawing.QUIET)
        words = spread_in_words([row["seconds_to_target"] for row in runs[name]], 2, " s").replace(" (", "\n(")
        corner = {"transform": axes.transAxes, "ha": "right", "va": "top", "fontsize": 8.5}
        axes.text(0.97, 0.95, words, color=drawing.BLUE, **corner)
    drawing.show_lowest_ticks(panels, columns)
    drawing.head(
        figure,
        f"Time to a validation loss of {target:.3f} nats a byte (dashed)",
        f"{measured(rows)} Validation loss over seconds of training (logarithmic), every seed; grey: one seed of each"
        f" other. In words: median over the seeds, least to most.{edge_in_words(rows)}",
    )
    return figure


CHARTS = {
    "roofline": Chart(
        "Time of an optimizer step over the bytes it moves, beside the line of a plain copy.",
        recorded.memory_bound,
        draw_roofline,
    ),
    "steps": Chart("Time of a whole optimizer step by model, beside other libraries.", recorded.steps, draw_steps),
    "matrix_steps": Chart(
        "Time of a matrix optimizer's whole step, beside other libraries.", recorded.matrix_steps, draw_matrix_steps
    ),
    "newton_schulz": Chart("Time of an orthogonalisation by shape.", recorded.newton_schulz, draw_newton_schulz),
    "host": Chart("Host time of a step over the number of tensors, beside torch.", recorded.host, draw_host),
    "train": Chart("Validation loss over training time for every optimizer.", train_rows.finals, draw_train),
}
