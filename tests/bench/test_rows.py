"""Rows: how they are recorded, which of them count, and how seeds are put in words."""

from __future__ import annotations

import json
from pathlib import Path

from recorded_rows import WHERE, train_rows, write

from rlx_gpu.bench import record, rows


def test_rows_are_appended_with_what_they_were_measured_on(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    record.append("any", [{"value": 1}], path)
    record.append("any", [{"value": 2}], path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["value"] for row in rows] == [1, 2]
    assert rows[0].keys() >= {"date", "commit", "device", "driver", "python", "torch", "triton", "cuda"}
    assert rows[0]["date"] == rows[1]["date"]


def test_spread_is_median_and_quintiles() -> None:
    assert record.spread([5.0, 1.0, 4.0, 2.0, 3.0]) == {"median": 3.0, "p20": 1.8, "p80": 4.2}
    assert record.spread([1.0, 1.0, 100.0])["p20"] == 1.0


def test_the_newest_row_of_each_measurement_counts_and_of_one_device_only() -> None:
    old, new, other = (
        {"optimizer": name, "device": device, "ms": ms}
        for name, device, ms in (("SGD", "b", 1), ("SGD", "b", 2), ("Lion", "a", 3))
    )
    kept = {"optimizer": "Lion", "device": "b", "ms": 4}
    assert rows.newest([other, old, kept, new], "optimizer") == [new, kept]
    assert rows.newest([], "optimizer") == []


def test_runs_towards_another_target_are_not_compared(tmp_path: Path) -> None:
    found = train_rows()
    elsewhere = [{**row, "target_loss": 3.0} for row in found[:4]]
    results = write(tmp_path, {"train": [*elsewhere, *found]})
    shown = rows.train(results)
    assert {row["target_loss"] for row in shown} == {2.0} and {row["phase"] for row in shown} == {"final"}


def test_seeds_of_an_older_run_are_not_mixed_with_the_last_runs(tmp_path: Path) -> None:
    older = [row for row in train_rows() if row["phase"] == "final"]
    again = {**older[0], "lr": 0.5, "date": "2000-01-02 00:00:00"}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({**WHERE, **row}) + "\n" for row in [*older, again]))
    shown = rows.train(tmp_path)
    assert [row["lr"] for row in shown if row["optimizer"] == again["optimizer"]] == [0.5]
    assert {row["optimizer"] for row in shown} == {row["optimizer"] for row in older}


def test_seeds_in_words_and_in_order() -> None:
    assert rows.spread_in_words([2.0, 1.0, 4.0], 1, " s") == "2.0 s (1.0 to 4.0)"
    assert rows.spread_in_words([2.0, None, 4.0], 0, " s") == "2 of 3 seeds (2 to 4 s)"
    assert rows.spread_in_words([2.0, None, None], 2) == "1 of 3 seeds (2.00)"
    assert rows.spread_in_words([None, None], 2) == "not reached"
    often = [{"seconds_to_target": time, "validation_loss": 2.0} for time in (3.0, 5.0, None)]
    rarely = [{"seconds_to_target": time, "validation_loss": 1.5} for time in (1.0, None, None)]
    never = [{"seconds_to_target": None, "validation_loss": loss} for loss in (1.0, 1.6, None)]
    assert sorted([never, rarely, often], key=rows.standing) == [often, rarely, never]
