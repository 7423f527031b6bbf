"""Rows: how they are recorded, which of them count, in which order, and how they are put in words."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from recorded_rows import EVERY_ROW, ROWS, WHERE, host_rows, write

from rlx_gpu.bench import record, rows

NOBODY = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false")


def test_rows_are_appended_with_what_they_were_measured_on(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    record.append("any", [{"value": 1}], path)
    record.append("any", [{"value": 2}], path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["value"] for row in rows] == [1, 2]
    assert rows[0].keys() >= {"date", "commit", "device", "driver", "python", "torch", "triton", "cuda"}
    assert rows[0]["date"] == rows[1]["date"]


def test_only_changed_sources_mark_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", *NOBODY, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    made = [tmp_path / name for name in ("bench/results/host.jsonl", "bench/plots/host.svg", "README.md", "setup.py")]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before", encoding="utf-8")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    commit = git("rev-parse", "--short=10", "HEAD")
    monkeypatch.setattr(record, "RESULTS", tmp_path / "bench" / "results")
    record.environment.cache_clear()
    found = []
    for path in made:
        path.write_text("after", encoding="utf-8")
        found.append(record.environment()["commit"])
        record.environment.cache_clear()
    assert found == [commit, commit, commit, f"{commit}-dirty"]


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


def test_host_times_are_in_order_of_tensors_and_providers(tmp_path: Path) -> None:
    later = [{**row, "provider": "optimi"} for row in host_rows() if row["provider"] == rows.OURS]
    moved = [{**row, "provider": "rlx-gpu, gradients moved"} for row in later]
    shown = rows.host(write(tmp_path, {"host": [*host_rows(), *later, *moved]}))
    order = list(dict.fromkeys((row["tensors"], row["provider"]) for row in shown))
    providers = ["rlx-gpu", "rlx-gpu, gradients moved", "torch fused", "torch foreach", "optimi"]
    assert order == [(tensors, name) for tensors in (148, 1000, 5000) for name in providers]


def test_the_commit_of_a_measurement_is_said_and_whether_the_tree_differed_from_it() -> None:
    found = [{**WHERE, "commit": commit} for commit in ("1234567890", "0123456789-dirty", "1234567890")]
    assert rows.measured(found) == (
        "Measured 2000-01-01 00:00 UTC on synthetic, torch 2.13.0, Triton 3.7.1,"
        " at commit 0123456789 with uncommitted changes and 1234567890."
    )
    assert ", Triton none," in rows.measured([{**WHERE, "triton": None}])


@pytest.mark.parametrize("bench", ROWS)
def test_recorded_rows_have_what_every_row_has(bench: str) -> None:
    """But those that are older than a key, which `bench/record.py` names."""
    older = {"host": EVERY_ROW - {"bench", "optimizer", "provider", "tensors"}}
    older["train"] = {"provider_version", "storage", "tensors", "parameters"}
    environment = record.environment().keys() - {"driver"}
    for row in rows.recorded(bench):
        lacking = EVERY_ROW - row.keys()
        assert row.keys() >= environment and row["bench"] == bench
        assert not lacking or lacking == older.get(bench), row["date"]
