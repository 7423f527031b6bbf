"""The charts: drawn from recorded rows, out of date as soon as those change, and with labels that can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded_rows import ELEMENTWISE, host_rows, peers, spread, texts, train_rows, write

from rlx_gpu.bench import charts, drawing, plot, rows

WORDS = {
    "roofline": ["float32", "bfloat16", "a copy, 4,286 GB/s", "Lion, SGD", "MARS", "torch fused", "unheard-of"],
    "steps": ["SGD", "AdamW", "llama-8b-shard", "flashoptim", "7.18 ms"],
    "matrix_steps": ["float32", "SOAP, mean, gpt2-124m", "heavyball", "8 ms"],
    "newton_schulz": ["bfloat16", "32 × 2048 × 2048", "rlx-gpu, gram", "batched cuBLAS"],
    "host": ["steady", "with cold caches", "rlx-gpu", "torch foreach", "5000"],
    "train": ["Time to a validation loss of 2.000 nats a byte (dashed)", "own rule", "not reached", "KronPSGD"],
}


@pytest.mark.parametrize("name", charts.CHARTS)
def test_every_chart_is_drawn_with_its_rows_named(name: str, drawn: tuple[Path, Path]) -> None:
    _, plots = drawn
    assert (plots / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    words = texts(plots / f"{name}.svg")
    assert [word for word in [*WORDS[name], "Measured 2000-01-01 00:00 UTC on synthetic"] if word not in words] == []


def test_an_optimizer_without_a_peer_is_not_beside_peers(drawn: tuple[Path, Path]) -> None:
    results, plots = drawn
    assert "Sophia" not in texts(plots / "steps.svg") and "Sophia" in texts(plots / "roofline.svg")
    assert {row["optimizer"] for row in rows.steps(results)} == {name for name in ELEMENTWISE if peers(name)}


def test_the_same_rows_are_not_drawn_again_and_give_the_same_svg(tmp_path: Path) -> None:
    results, plots = write(tmp_path / "results", {"host": host_rows()}), tmp_path / "plots"
    plot.draw(results, plots)
    before = (plots / "host.svg").read_bytes()
    assert plot.draw(results, plots)["host"] == "up to date"
    assert plot.draw(results, plots, anew=True)["host"] == "drawn"
    assert (plots / "host.svg").read_bytes() == before


def test_only_the_charts_of_changed_rows_are_drawn_again(tmp_path: Path) -> None:
    results, plots = write(tmp_path / "results", {"host": host_rows(), "train": train_rows()}), tmp_path / "plots"
    assert plot.draw(results, plots) == {
        **dict.fromkeys(("roofline", "steps", "matrix_steps", "newton_schulz"), "no rows, skipped"),
        **dict.fromkeys(("host", "train"), "drawn"),
    }
    assert plot.drawn(plots) == plot.wanted(results)
    slower = [{**row, "us_per_tensor": spread(20.0)} for row in host_rows()]
    write(results, {"host": [*host_rows(), *slower]})
    assert plot.drawn(plots)["host"] != plot.wanted(results)["host"]
    fates = plot.draw(results, plots)
    assert (fates["host"], fates["train"]) == ("drawn", "up to date")


def test_pictures_without_rows_are_removed_and_missing_pictures_are_drawn(tmp_path: Path) -> None:
    results, plots = write(tmp_path / "results", {"host": host_rows()}), tmp_path / "plots"
    plot.draw(results, plots)
    (plots / "host.png").unlink()
    assert plot.drawn(plots) == {}
    assert plot.draw(results, plots)["host"] == "drawn"
    (results / "host.jsonl").unlink()
    assert plot.draw(results, plots)["host"] == "no rows, skipped"
    assert [path.name for path in plots.iterdir()] == ["index.json"]


def test_committed_plots_are_those_of_the_recorded_rows() -> None:
    assert plot.drawn() == plot.wanted(), "run `rlx-gpu bench plot`"


def test_a_run_that_diverged_at_once_does_not_stop_the_chart(tmp_path: Path) -> None:
    found = train_rows()
    for row in found:
        if row["optimizer"] == "SGD":
            row |= {"curve": row["curve"][:1], "diverged": 3, "seconds_to_target": None, "validation_loss": None}
    plot.draw(write(tmp_path / "results", {"train": found}), tmp_path)
    words = texts(tmp_path / "train.svg")
    assert "SGD" in words and "AdamW" in words


def test_a_label_joins_only_what_one_dot_shows() -> None:
    points = [(24.0, 5.6, "Sophia"), (24.0, 5.7, "Other"), (24.0, 6.4, "Adafactor"), (28.0, 5.6, "AdamW")]
    assert list(charts.together(points).values()) == [["Sophia", "Other"], ["Adafactor"], ["AdamW"]]


def test_labels_move_apart_and_no_more_than_they_must() -> None:
    assert drawing.apart([0.0, 1.0], [0.1, 0.1]) == [0.0, 1.0]
    low, high = drawing.apart([0.5, 0.5], [0.1, 0.3])
    assert (low, high) == pytest.approx((0.4, 0.6))
