"""Draws the charts of recorded rows into `bench/plots/`, writes README and stubs anew. `rlx-gpu bench plot`

`index.json` beside the pictures says which rows each was drawn from: the bytes of a picture differ between versions of
matplotlib, the rows do not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from . import readme, stubs
from .charts import CHARTS, PLOTS
from .record import RESULTS
from .rows import digest

INDEX = "index.json"
FORMATS = ("svg", "png")


def wanted(results: Path = RESULTS) -> dict[str, str]:
    """chart -> digest of the rows it shows; charts without rows are left out."""
    selected = {name: chart.select(results) for name, chart in CHARTS.items()}
    return {name: digest(rows) for name, rows in selected.items() if rows}


def drawn(plots: Path = PLOTS) -> dict[str, str]:
    """chart -> digest of the rows that its pictures were drawn from; charts without their pictures are left out."""
    index: dict[str, str] = json.loads((plots / INDEX).read_text(encoding="utf-8")) if (plots / INDEX).exists() else {}
    return {name: rows for name, rows in index.items() if all((plots / f"{name}.{s}").exists() for s in FORMATS)}


def draw(results: Path = RESULTS, plots: Path = PLOTS, anew: bool = False) -> dict[str, str]:
    """Draw the charts whose rows have changed, or all, and remove those without rows; return what became of each."""
    from .drawing import style

    plots.mkdir(parents=True, exist_ok=True)
    before, after = drawn(plots), wanted(results)
    fates = {}
    for name, chart in CHARTS.items():
        paths = [plots / f"{name}.{suffix}" for suffix in FORMATS]
        if name not in after:
            for path in paths:
                path.unlink(missing_ok=True)
            fates[name] = "no rows, skipped"
        elif before.get(name) == after[name] and not anew:
            fates[name] = "up to date"
        else:
            with style():
                figure = chart.draw(chart.select(results))
                for path in paths:
                    # Without a date or a version in it, the same picture is the same file.
                    figure.savefig(path, dpi=110, metadata={"Date" if path.suffix == ".svg" else "Software": None})
            fates[name] = "drawn"
    (plots / INDEX).write_text(json.dumps(after, indent=1) + "\n", encoding="utf-8")
    return fates


def main(
    anew: Annotated[bool, typer.Option("--anew", help="Draw also the charts whose rows have not changed.")] = False,
) -> None:
    """Draw the charts of the recorded rows, and write the README's tables and figures and the type stubs anew."""
    try:
        fates = draw(anew=anew)
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: the charts need {error.name}: pip install 'rlx-gpu[train]'") from error
    for name, fate in fates.items():
        typer.echo(f"{name}: {fate}")
    if readme.README.exists():  # not where the package was installed from a wheel
        readme.write()
        stubs.write()


if __name__ == "__main__":
    typer.run(main)
