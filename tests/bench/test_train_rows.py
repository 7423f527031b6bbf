"""Which run of the train bench is shown, and how its results are put in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recorded_rows import WHERE, train_rows

from rlx_gpu.bench import train_rows as shown
from rlx_gpu.table import TABLE


def run(day: int, **changed: Any) -> list[dict[str, Any]]:
    """All optimizers, run on a day."""
    return [{**WHERE, **row, **changed, "date": f"2000-01-{day:02} 00:00:00"} for row in train_rows()]


def written(folder: Path, *runs: list[dict[str, Any]]) -> Path:
    """A folder with these runs, in this order."""
    lines = [json.dumps(row) + "\n" for rows in runs for row in rows]
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def test_the_newest_run_is_shown_and_nothing_of_another(tmp_path: Path) -> None:
    folder = written(tmp_path, run(1, steps=100), run(3, target_loss=1.9), run(2, target_loss=3.0))
    finals = shown.finals(folder)
    assert {(row["date"][:10], row["target_loss"], row["phase"]) for row in finals} == {("2000-01-03", 1.9, "final")}
    assert len(finals) == 3 * len(TABLE)


def test_a_run_of_few_optimizers_does_not_hide_one_of_all(tmp_path: Path) -> None:
    few = [row for row in run(2) if row["optimizer"] in ("AdamW", "Lion")]
    assert {row["date"] for row in shown.last_run(written(tmp_path, run(1), few))} == {"2000-01-01 00:00:00"}
    assert {row["date"] for row in shown.last_run(written(tmp_path, few))} == {"2000-01-02 00:00:00"}


@pytest.mark.parametrize("key", ["config", "steps", "target_loss", "device"])
def test_what_differs_is_another_run_even_at_the_same_time(tmp_path: Path, key: str) -> None:
    found = shown.last_run(written(tmp_path, run(1), run(1, **{key: {"width": 1}})))
    assert len({json.dumps(row[key]) for row in found}) == 1


def test_without_rows_there_is_no_run(tmp_path: Path) -> None:
    assert shown.last_run(tmp_path) == shown.finals(tmp_path) == []


def test_a_sweep_is_open_where_nothing_beyond_the_best_was_tried() -> None:
    assert shown.sweep_open(2.0, [1.0, 2.0, 3.0]) is None
    assert shown.sweep_open(3.0, [1.0, None, 3.0]) == "above"
    assert shown.sweep_open(1.0, [1.0, None, 3.0]) == "below"
    assert shown.sweep_open(1.0, [1.0]) == "above and below"
    assert shown.sweep_open(None, [None, 1.0, 3.0]) is None


def test_learning_rates_say_where_their_sweep_was_open(tmp_path: Path) -> None:
    finals = {row["optimizer"]: row for row in shown.finals(written(tmp_path, run(1)))}
    words = [shown.lr_in_words(finals[name]) for name in ("AdamW", "SGD", "Adafactor")]
    assert words == ["0.003", "≥ 0.003", "own rule"]
    assert shown.lr_in_words({"lr": 0.5, "sweep_open": "above and below"}) == "untuned, 0.5"
    assert shown.edge_in_words([finals["AdamW"], finals["SGD"]]) and not shown.edge_in_words([finals["AdamW"]])
    as_recorded = shown.finals(written(tmp_path, run(1, sweep_open="below")))[0]
    assert shown.lr_in_words(as_recorded) == "≤ 0.003"


def test_seeds_in_words_and_in_order() -> None:
    assert shown.spread_in_words([2.0, 1.0, 4.0], 1, " s") == "2.0 s (1.0 to 4.0)"
    assert shown.spread_in_words([2.0, None, 4.0], 0, " s") == "2 of 3 seeds (2 to 4 s)"
    assert shown.spread_in_words([2.0, None, None], 2) == "1 of 3 seeds (2.00)"
    assert shown.spread_in_words([None, None], 2) == "not reached"
    often = [{"seconds_to_target": time, "validation_loss": 2.0} for time in (3.0, 5.0, None)]
    rarely = [{"seconds_to_target": time, "validation_loss": 1.5} for time in (1.0, None, None)]
    never = [{"seconds_to_target": None, "validation_loss": loss} for loss in (1.0, 1.6, None)]
    assert sorted([never, rarely, often], key=shown.standing) == [often, rarely, never]
