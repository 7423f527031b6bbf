"""Time to a loss: the sweep finds the best learning rate, runs repeat, and what is recorded follows from the curves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from recorded_rows import EVERY_ROW
from typer.testing import CliRunner

from rlx_gpu.bench import train
from rlx_gpu.table import TABLE
from rlx_gpu.train.config import ModelConfig, TrainConfig, TrainError
from rlx_gpu.train.data import Corpus, load_corpus
from rlx_gpu.train.model import ByteGPT

pytestmark = pytest.mark.xdist_group(__name__)  # what the module prepares is made once
CPU = torch.device("cpu")
TINY = TrainConfig("AdamW", steps=24, lr=3e-3, warmup=2, batch_size=4, model=ModelConfig(context=8, width=16, layers=1))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus()


def made_up(config: TrainConfig, loss: float, diverged: int | None = None) -> train.Outcome:
    """A run whose loss falls evenly from 5 to `loss`, a second a step."""
    curve = [(float(step), step, 5 + (loss - 5) * step / config.steps) for step in range(config.steps + 1)]
    records = [{"step_ms": 1000.0 + step, "optimizer_ms": 10.0} for step in range(config.steps)]
    return train.Outcome(config, curve, records, [6, 4], diverged)


def valley(bottom: float, seen: list[float]) -> Any:
    """Training whose last loss is least at one learning rate."""

    def run(config: TrainConfig) -> train.Outcome:
        assert config.lr is not None
        seen.append(config.lr)
        return made_up(config, 1 + abs(math.log10(config.lr / bottom)))

    return run


@pytest.mark.parametrize("bottom", [3e-3, 3e-4, 3e-2])
def test_sweep_ends_with_a_worse_learning_rate_on_either_side_of_the_best(bottom: float) -> None:
    seen: list[float] = []
    tried = train.sweep(TINY, 9, valley(bottom, seen))
    best = min(tried, key=lambda outcome: outcome.validation_loss).config.lr
    assert best is not None and best == pytest.approx(bottom, rel=0.06)
    assert min(seen) < best < max(seen) and len(seen) == len(set(seen)) < 7


def test_sweep_tries_no_more_than_it_may() -> None:
    seen: list[float] = []
    train.sweep(TINY, 4, valley(1e3, seen))
    assert seen == pytest.approx([3e-3, 9.5e-4, 9.5e-3, 3e-2])


def test_sweep_of_an_optimizer_with_its_own_rule_tries_that_too() -> None:
    tried = train.sweep(replace(TINY, optimizer="Adafactor", lr=None), 4, lambda config: made_up(config, 2.0))
    assert [outcome.config.lr for outcome in tried] == [None, 0.01, 0.0032, 0.032]


def test_target_is_the_references_loss_at_four_fifths_and_its_seeds_are_not_the_sweeps() -> None:
    recorded: dict[str, list[dict[str, Any]]] = {}
    ends = {"AdamW": 1.0, "Lion": 0.5, "SGD": 3.0}
    train.compare(
        ["Lion", "SGD"],
        replace(TINY, steps=10),
        tries=2,
        seeds=3,
        target=None,
        train=lambda config: made_up(config, ends[config.optimizer]),
        record=lambda rows: recorded.update({rows[0]["optimizer"]: rows}),
    )
    assert list(recorded) == ["AdamW", "Lion", "SGD"]
    rows = [row for rows in recorded.values() for row in rows]
    assert {row["target_loss"] for row in rows} == {1.8}  # 5 - 4 × 0.8, rounded
    assert [(row["phase"], row["seed"]) for row in recorded["Lion"]] == [
        *[("sweep", 0)] * 2,
        *[("final", seed) for seed in (1, 2, 3)],
    ]
    # Lion falls by 0.45 a step, from 5 to the target of 1.8 in 7.1 steps; SGD ends at 3.
    assert {row["steps_to_target"] for row in recorded["Lion"]} == {8}
    assert {row["seconds_to_target"] for row in recorded["Lion"]} == {8.0}
    assert {row["seconds_to_target"] for row in recorded["SGD"]} == {None}
    assert train.summary(recorded["SGD"][2:])[1] == "not reached"
    assert train.summary(recorded["Lion"][2:])[:3] == [
        f"≥ {recorded['Lion'][-1]['lr']:g}",
        "8.00 (8.00)",
        "8 (8)",
    ]


def test_a_target_that_is_given_needs_no_reference_run() -> None:
    recorded: list[str] = []
    train.compare(
        ["Lion"],
        TINY,
        tries=1,
        seeds=1,
        target=4.0,
        train=lambda config: made_up(config, 2.0),
        record=lambda rows: recorded.extend(row["optimizer"] for row in rows),
    )
    assert recorded == ["Lion", "Lion"]


def test_without_a_reference_that_trains_there_is_no_target() -> None:
    with pytest.raises(TrainError, match="AdamW diverged"):
        train.compare(
            ["AdamW"],
            TINY,
            tries=1,
            seeds=1,
            target=None,
            train=lambda config: made_up(config, 9.0, diverged=5),
            record=lambda rows: None,
        )


def test_a_diverged_run_is_recorded_as_such_and_is_never_the_best() -> None:
    row = train.row(made_up(TINY, 1.0, diverged=7), "sweep", target=0.5)
    assert (row["diverged"], row["validation_loss"], row["seconds_to_target"]) == (7, None, None)
    outcomes = [made_up(TINY, 1.0, diverged=7), made_up(TINY, 4.0)]
    assert min(outcomes, key=lambda outcome: outcome.validation_loss).diverged is None


@pytest.mark.parametrize("path", ["host"], indirect=True)
def test_a_run_repeats_and_stops_where_it_diverges(path: str, corpus: Corpus) -> None:
    state = torch.get_rng_state()
    first, again = (train.train_once(TINY, corpus, CPU) for _ in range(2))
    assert [point[1:] for point in first.curve] == [point[1:] for point in again.curve]
    assert torch.equal(torch.get_rng_state(), state)
    seconds = [point[0] for point in first.curve]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(sum(record["step_ms"] for record in first.records) / 1e3)
    assert first.validation_loss < first.curve[0][2] - 0.5
    other = train.train_once(replace(TINY, seed=1), corpus, CPU)
    assert other.curve[0][2] != first.curve[0][2]
    wild = train.train_once(replace(TINY, optimizer="SGD", lr=1e3), corpus, CPU)
    assert wild.diverged is not None and wild.diverged < TINY.steps and len(wild.records) < TINY.steps
    assert all(math.isfinite(loss) for _, _, loss in wild.curve)
    json.dumps(train.row(wild, "sweep", 1.0), allow_nan=False)


@pytest.mark.parametrize("path", ["host"], indirect=True)
def test_the_command_records_sweep_and_final_runs(path: str, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(train.main)
    file = tmp_path / "train.jsonl"
    small = "--steps 20 --seeds 2 --tries 2 --width 16 --layers 1 --context 8 --batch-size 4 --device cpu"
    result = CliRunner().invoke(app, [*small.split(), "--optimizer", "lion", "--json", str(file)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(row["optimizer"], row["phase"]) for row in rows] == [
        (name, phase) for name in ("AdamW", "Lion") for phase in ("sweep", "sweep", "final", "final")
    ]
    sizes = [param.numel() for param in ByteGPT(TINY.model).parameters()]
    for row in rows:
        assert row["bench"] == "train" and row["ran_on"] == "cpu" and row["steps"] == 20
        assert row["config"]["data"] and row["config"]["width"] == 16
        assert row["curve"][0][:2] == [0.0, 0] and row["curve"][-1][1] == 20 and len(row["curve"]) <= 60
        assert row["ms"]["median"] >= row["optimizer_ms"]["median"] > 0
        assert row.keys() >= EVERY_ROW | {"date", "commit", "device", "torch", "triton"}
        assert (row["storage"], row["tensors"], row["parameters"]) == ("float32", len(sizes), sum(sizes))
    assert {row["lr"] for row in rows if row["optimizer"] == "Lion" and row["phase"] == "final"} < {
        row["lr"] for row in rows if row["optimizer"] == "Lion" and row["phase"] == "sweep"
    }
    assert "Lion" in result.output


def test_every_optimizer_has_a_place_to_start_from() -> None:
    for name in TABLE:
        tried = train.sweep(replace(TINY, optimizer=name, lr=None), 3, lambda config: made_up(config, 2.0))
        assert len(tried) == 3 and all(outcome.config.lr is None or outcome.config.lr > 0 for outcome in tried)


def test_a_device_that_is_not_there_is_an_error_in_words() -> None:
    app = typer.Typer()
    app.command()(train.main)
    result = CliRunner().invoke(app, ["--device", "cuda:99"])
    assert result.exit_code != 0 and "cuda:99" in str(result.exception)
