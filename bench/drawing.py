"""What the charts share: one look, a colour for each provider, labels that keep apart, and the dot plot."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from .providers import OURS

# An opaque, nearly white ground: the same picture is read on light and on dark pages.
GROUND, INK, QUIET, FAINT = "#fcfcfa", "#2b2b2b", "#77777a", "#dededc"
BLUE = "#1558b0"
PROVIDERS = {
    OURS: BLUE,
    f"{OURS}, gradients moved": "#4a8bd6",
    "torch fused": "#d1495b",
    "torch foreach": "#e0913a",
    "torch compiled": "#a0522d",
    "torch": "#b5304f",
    "flashoptim": "#2f8f5b",
    "optimi": "#7a4fa3",
    "pytorch_optimizer": "#c2549d",
    "heavyball": "#178a9c",
    "kron_torch": "#5f6b2f",
    "torchao": "#9a8412",
    "bitsandbytes": "#6b7280",
    "batched cuBLAS": "#3f9142",
}
OTHERS = ("#3d405b", "#81582b", "#4f9d69", "#9b5de5")
BLUES = ("#7fb0e6", "#0b2f63", "#9fb3c8", "#4a8bd6")  # other ways of ours
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "axes.facecolor": GROUND,
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "svg.hashsalt": "rlx-gpu",  # the same rows give the same file
}


def style() -> Any:
    """The look, for as long as a chart is drawn and saved."""
    return rc_context(STYLE)


def panels(count: int, columns: int, size: tuple[float, float], **share: Any) -> tuple[Figure, list[Any]]:
    """A figure with `count` axes of `size` inches each, in rows of `columns`; the grid's empty places are removed."""
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(max(7.0, size[0] * columns), size[1] * lines + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(lines, columns, squeeze=False, **share).flat)
    for empty in axes[count:]:
        empty.remove()
    return figure, axes[:count]


def head(figure: Figure, title: str, note: str) -> None:
    """The chart's statement, and under it what it was measured on."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    foot(figure, note)


def foot(figure: Figure, note: str) -> None:
    """A note under the panels, in as many lines as the width asks for."""
    lines = textwrap.fill(note, int(17.5 * figure.get_figwidth()))
    figure.supxlabel(lines, x=0.01, ha="left", fontsize=7.5, color=QUIET)


def colors(providers: Iterable[str]) -> dict[str, str]:
    """A colour for each provider: the known ones always have theirs; other ways of ours are blue."""
    found, unknown = dict(PROVIDERS), sorted(set(providers) - PROVIDERS.keys())
    for ours, hues in ((True, BLUES), (False, OTHERS)):
        alike = [name for name in unknown if name.startswith(OURS) == ours]
        found |= dict(zip(alike, itertools.cycle(hues), strict=False))
    return found


def apart(places: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """The places, moved as little as it takes for things of these sizes, centred there, not to overlap."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for _ in range(500):
        for below, above in itertools.pairwise(order):
            lacking = (sizes[below] + sizes[above]) / 2 - (moved[above] - moved[below])
            if lacking > 0:
                moved[below] -= lacking / 2
                moved[above] += lacking / 2
    return moved


def label(
    axes: Any,
    ends: Sequence[tuple[float, float, str, str]],
    *,
    offset: float = 0.03,
    column: float | None = None,
    gap: float = 0.05,
) -> None:
    """Write names beside points (x, y, name, colour), moved apart vertically and tied to their points.

    Args:
        axes: with its final limits and scales.
        ends: the points and their labels.
        offset: between a point and its label, as a share of the width; negative to the left.
        column: where all labels begin, as a share of the width, instead of beside their points.
        gap: a line of a label, as a share of the height.
    """
    to_share = axes.transAxes.inverted()
    shares = [to_share.transform(axes.transData.transform((x, y))) for x, y, _, _ in ends]
    heights = apart([up for _, up in shares], [gap * len(name.splitlines()) for _, _, name, _ in ends])
    left = offset < 0
    for (across, up), height, (_, _, name, color) in zip(shares, heights, ends, strict=True):
        line = {"arrowstyle": "-", "color": color, "alpha": 0.5, "linewidth": 0.8, "relpos": (float(left), 0.5)}
        axes.annotate(
            name,
            xy=(across, up),
            xytext=(across + offset if column is None else column, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=color,
            ha="right" if left else "left",
            va="center",
            fontsize=8.5,
            annotation_clip=False,
            arrowprops=line,
        )


def plain_ticks(axis: Any, values: Sequence[float]) -> None:
    """Ticks at these values of a logarithmic axis, in plain numbers, and no others."""
    axis.set_ticks(list(values))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def round_numbers(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones, about three to seven of them on a logarithmic axis."""
    ratio = high / low
    factors = (1, 1.5, 2, 3, 5, 7) if ratio < 8 else (1, 2, 5) if ratio < 100 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]


def dots(axes: Any, groups: Mapping[str, Mapping[str, float]], limits: tuple[float, float]) -> None:
    """A line for each group, with every provider's time as a multiple of ours; ours in milliseconds at the right."""
    palette = colors([provider for values in groups.values() for provider in values])
    for place, values in enumerate(groups.values()):
        if not values:
            continue
        ours = values[OURS]
        shares = {provider: value / ours for provider, value in values.items()}
        axes.plot([min(shares.values()), max(shares.values())], [place, place], color=FAINT, linewidth=1.5, zorder=1)
        for provider, share in shares.items():
            size, order = (7, 3) if provider == OURS else (5.5, 4)
            axes.plot(share, place, "o", color=palette[provider], markersize=size, zorder=order, clip_on=False)
        axes.text(
            1.01, place, f"{ours:.3g} ms", transform=axes.get_yaxis_transform(), color=BLUE, fontsize=7.5, va="center"
        )
    axes.set(xscale="log", xlim=limits, ylim=(len(groups) - 0.5, -0.5))
    axes.set_yticks(range(len(groups)), list(groups), color=INK)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    plain_ticks(axes.xaxis, round_numbers(*limits))
    axes.grid(axis="x")
    axes.axvline(1, color=BLUE, linewidth=1, alpha=0.5, zorder=1)


def dot_plot(
    title: str, note: str, grid: Mapping[str, Mapping[str, Mapping[str, float]]], columns: int, width: float
) -> Figure:
    """A panel of `dots` for each entry of the grid: panel -> group -> provider -> milliseconds, ours always among them.

    Args:
        title: the chart's statement.
        note: what it was measured on.
        grid: the times; every panel has a line for each group of any panel, in one order.
        columns: panels beside each other.
        width: of a panel, in inches.
    """
    names = list(dict.fromkeys(name for groups in grid.values() for name in groups))
    every = [values for groups in grid.values() for values in groups.values()]
    shares = [value / values[OURS] for values in every for value in values.values()]
    limits = (min(shares) / 1.25, max(*shares, 1.6) * 1.1)
    figure, axes = panels(len(grid), columns, (width, 0.65 + 0.23 * len(names)), sharex=True, sharey=True)
    for panel, (heading, groups) in zip(axes, grid.items(), strict=True):
        dots(panel, {name: groups.get(name, {}) for name in names}, limits)
        panel.set_title(heading, loc="left", fontsize=10, fontweight="bold")
    show_lowest_ticks(axes, columns)
    found = {provider for values in every for provider in values}
    palette = colors(found)
    marks = [
        Line2D([], [], marker="o", linestyle="", color=palette[name], label=name) for name in palette if name in found
    ]
    figure.legend(
        handles=marks,
        title=title,
        title_fontproperties={"size": 12.5, "weight": "bold"},
        alignment="left",
        loc="outside upper left",
        ncols=int(figure.get_figwidth() // 1.4),
        frameon=False,
        labelcolor="linecolor",
        handletextpad=0.1,
        columnspacing=1.2,
        borderpad=0,
        borderaxespad=0.4,
    )
    foot(figure, note)
    return figure


def show_lowest_ticks(axes: Sequence[Any], columns: int) -> None:
    """Number the horizontal axis of the lowest panel of each column, also where the last row is not full."""
    for panel in axes[-columns:]:
        panel.tick_params(labelbottom=True)
