"""The charts and the README's figures: drawn from recorded rows, and out of date as soon as those change."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from rlx_gpu.bench import charts, drawing, plot, readme, rows
from rlx_gpu.bench.providers import OURS
from rlx_gpu.table import TABLE

WHERE = {
    "date": "2000-01-01 00:00:00",
    "commit": "synthetic",
    "device": "synthetic",
    "python": "3.11.7",
    "torch": "2.13.0",
    "triton": "3.7.1",
    "cuda": None,
}
SLOWER = {
    OURS: 1.0,
    "torch fused": 1.22,
    "torch foreach": 3.3,
    "torch compiled": 1.3,
    "flashoptim": 1.26,
    "optimi": 1.5,
    "pytorch_optimizer": 4.4,
    "heavyball": 1.9,
    "unheard-of": 0.9,
}
PEERS = {
    "SGD": ["torch fused", "torch foreach", "flashoptim", "optimi", "heavyball"],
    "Adam": ["torch fused", "torch foreach", "flashoptim", "optimi"],
    "AdamW": ["torch fused", "torch foreach", "torch compiled", "flashoptim", "optimi", "heavyball"],
    "NAdamW": ["torch foreach"],
    "RAdam": ["torch foreach", "optimi"],
    "QHAdamW": ["pytorch_optimizer"],
    "Lion": ["flashoptim", "optimi", "pytorch_optimizer", "unheard-of"],
    "LAMB": ["pytorch_optimizer"],
    "MARS": ["pytorch_optimizer"],
    "Adafactor": ["torch foreach", "pytorch_optimizer"],
}
MATRIX = ("Muon", "SOAP", "KronPSGD")
BYTES = {"SGD": 20, "Lion": 20, "Sophia": 24, "LAMB": 40, "MARS": 44, "Adafactor": 24}
MODELS = {
    "gpt2-124m": (148, 124_439_808),
    "llama-1b": (146, 1_235_814_400),
    "llama-8b-shard": (291, 1_003_782_656),
    "moe": (531, 1_282_017_280),
    "vit": (392, 304_326_632),
    "many-small": (5000, 20_480_000),
    "square-1b": (64, 2**30),
}


def spread(median: float) -> dict[str, float]:
    return {"median": median, "p20": 0.99 * median, "p80": 1.02 * median}


def elementwise_rows() -> list[dict[str, Any]]:
    found = []
    for model, (tensors, count) in MODELS.items():
        for name in (name for name in TABLE if name not in MATRIX):
            for storage, share in (("float32", 1.0), ("bfloat16", 0.5), ("bfloat16_stochastic", 0.5)):
                peers = PEERS.get(name, []) if storage != "bfloat16_stochastic" else []
                moved = BYTES.get(name, 28) * share
                for provider in [OURS, *peers]:
                    ms = SLOWER[provider] * (moved * count / 4.2e9 + 0.02)
                    ours = {"bytes_per_param": moved, "gb_per_s": moved * count / ms / 1e6}
                    ours |= {"share_of_copy": moved * count / ms / 1e6 / 4286.3}
                    ours |= {"best_peer_over_this": min((SLOWER[peer] for peer in peers), default=None)}
                    found.append(
                        {"bench": "elementwise", "optimizer": name, "provider": provider, "model": model}
                        | {"storage": storage, "tensors": tensors, "parameters": count, "ms": spread(ms)}
                        | {"copy_gb_per_s": 4286.3, "bytes_per_param": None, "best_peer_over_this": None}
                        | (ours if provider == OURS else {})
                    )
    return found


def matrix_rows() -> list[dict[str, Any]]:
    found = []
    providers = {OURS: 1.0, f"{OURS}, gram": 1.1, f"{OURS}, plain": 1.5, "batched cuBLAS": 1.6, "torch": 5.0}
    for shape in ((12, 768, 3072), (32, 2048, 2048), (128, 1024, 2048), (4, 4096, 4096)):
        best = 30 * math.prod(shape) * shape[1] / 6e11 + 0.1
        for provider, factor in providers.items():
            found.append(
                {"bench": "matrix", "optimizer": "newton_schulz", "provider": provider, "shape": list(shape)}
                | {"storage": "bfloat16", "ms": spread(best * factor), "tensors": shape[0]}
                | {"tflops": 400.0 / factor, "share_of_matmul": 0.6 / factor, "parameters": math.prod(shape)}
            )
    for name, variant in (("Muon", None), ("SOAP", "steady"), ("SOAP", "mean"), ("KronPSGD", None)):
        for provider, ms in ((OURS, 8.0), ("heavyball", 14.0), ("pytorch_optimizer", 90.0)):
            found.append(
                {"bench": "matrix", "optimizer": name, "provider": provider, "model": "gpt2-124m"}
                | ({"variant": variant} if variant else {})
                | {"storage": "float32", "ms": spread(ms), "parameters": 124_439_808, "tensors": 148}
            )
    return found


def cpu_rows() -> list[dict[str, Any]]:
    return [
        {"bench": "cpu", "optimizer": name, "provider": provider, "model": "gpt2-124m, one block"}
        | {"storage": "float32", "ms": spread(ms), "tensors": 12, "parameters": 7_087_872}
        for name in ("AdamW", "Lion")
        for provider, ms in ((OURS, 80.0), ("torch foreach", 20.0))
    ]


def train_rows() -> list[dict[str, Any]]:
    found = []
    for place, name in enumerate(dict.fromkeys([*TABLE, *MATRIX])):
        for seed in (1, 2, 3):
            draw = random.Random(f"{name}{seed}")
            step_ms, floor = 4 + place / 4, 1.75 + 0.03 * place
            curve = [
                [step * step_ms / 1e3, step, floor + 3.8 * math.exp(-((step / 40) ** 0.6)) + draw.gauss(0, 0.015)]
                for step in range(0, 401, 8)
            ]
            reached = next((point for point in curve if point[2] <= 2.0), [None, None])
            found.append(
                {"bench": "train", "optimizer": name, "provider": OURS, "model": "byte-gpt", "phase": "final"}
                | {"lr": None if name == "Adafactor" else 3e-3, "seed": seed, "steps": 400, "target_loss": 2.0}
                | {"seconds_to_target": reached[0], "steps_to_target": reached[1], "validation_loss": curve[-1][2]}
                | {
                    "diverged": None,
                    "ms": spread(step_ms),
                    "config": {"width": 128, "layers": 3, "context": 64},
                    "curve": curve,
                }
            )
    return [{**found[0], "phase": "sweep", "lr": 1e-3, "seed": 0}, *found]


def host_rows() -> list[dict[str, Any]]:
    return [
        {"bench": "host", "optimizer": "AdamW", "provider": provider, "tensors": tensors, "caches": caches}
        | {"us_per_tensor": spread(cost + (caches == "cold") * 300 / tensors)}
        for tensors in (148, 1000, 5000)
        for provider, cost in ((OURS, 1.4), ("torch fused", 3.6), ("torch foreach", 14.0))
        for caches in ("steady", "cold")
    ]


ROWS = {"elementwise": elementwise_rows, "matrix": matrix_rows, "train": train_rows, "host": host_rows, "cpu": cpu_rows}


def write(folder: Path, benches: dict[str, list[dict[str, Any]]]) -> Path:
    """Rows into the files of a folder."""
    folder.mkdir(exist_ok=True)
    for name, found in benches.items():
        text = "".join(json.dumps({**row, **WHERE}) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def texts(svg: Path) -> str:
    """The words of a picture: matplotlib writes each as a comment beside its outlines."""
    return "\n".join(re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders with rows of every bench, and with the charts of them."""
    results = write(tmp_path_factory.mktemp("results"), {name: make() for name, make in ROWS.items()})
    plots = tmp_path_factory.mktemp("plots")
    assert set(plot.draw(results, plots).values()) == {"drawn"}
    return results, plots


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
    assert {row["optimizer"] for row in rows.steps(results)} == set(PEERS)


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


def test_a_run_that_diverged_at_once_does_not_stop_the_chart(tmp_path: Path) -> None:
    found = train_rows()
    for row in found:
        if row["optimizer"] == "SGD":
            row |= {"curve": row["curve"][:1], "diverged": 3, "seconds_to_target": None, "validation_loss": None}
    plot.draw(write(tmp_path / "results", {"train": found}), tmp_path)
    words = texts(tmp_path / "train.svg")
    assert "SGD" in words and "AdamW" in words


def test_seeds_in_words_and_in_order() -> None:
    assert rows.spread_in_words([2.0, 1.0, 4.0], 1, " s") == "2.0 s (1.0 to 4.0)"
    assert rows.spread_in_words([2.0, None, 4.0], 0, " s") == "2 of 3 seeds (2 to 4 s)"
    assert rows.spread_in_words([2.0, None, None], 2) == "1 of 3 seeds (2.00)"
    assert rows.spread_in_words([None, None], 2) == "not reached"
    often = [{"seconds_to_target": time, "validation_loss": 2.0} for time in (3.0, 5.0, None)]
    rarely = [{"seconds_to_target": time, "validation_loss": 1.5} for time in (1.0, None, None)]
    never = [{"seconds_to_target": None, "validation_loss": loss} for loss in (1.0, 1.6, None)]
    assert sorted([never, rarely, often], key=rows.standing) == [often, rarely, never]


def test_a_label_joins_only_what_one_dot_shows() -> None:
    points = [(24.0, 5.6, "Sophia"), (24.0, 5.7, "Other"), (24.0, 6.4, "Adafactor"), (28.0, 5.6, "AdamW")]
    assert list(charts.together(points).values()) == [["Sophia", "Other"], ["Adafactor"], ["AdamW"]]


def test_labels_move_apart_and_no_more_than_they_must() -> None:
    assert drawing.apart([0.0, 1.0], [0.1, 0.1]) == [0.0, 1.0]
    low, high = drawing.apart([0.5, 0.5], [0.1, 0.3])
    assert (low, high) == pytest.approx((0.4, 0.6))


def test_readme_sections_are_written_from_the_same_rows(drawn: tuple[Path, Path], monkeypatch) -> None:
    results, plots = drawn
    monkeypatch.setattr(readme, "PLOTS", plots)
    assert readme.elementwise(results).splitlines()[0].startswith("![Time of an optimizer step over the bytes")
    line = next(line for line in readme.elementwise(results).splitlines() if line.startswith("| square-1b | AdamW |"))
    assert line == "| square-1b | AdamW | 7.18 | 98% | torch fused | 1.22 | 3.6 | 97% | torch fused | 1.22 |"
    assert "| square-1b | Sophia | 6.16 | 98% | – | – |" in readme.elementwise(results)
    assert "| SOAP, mean | gpt2-124m | float32 | 8 | – | heavyball | 1.75 |" in readme.matrix(results)
    assert "| newton_schulz | 4 × 4096 × 4096 | bfloat16 | 13.8 | 60% | batched cuBLAS | 1.60 |" in readme.matrix(
        results
    )
    assert "| Lion | 80 | torch foreach | 0.25 |" in readme.cpu(results)
    assert "| `SGD` | 0.003 | 0.86 (0.83 to 0.90) | 216 (208 to 224) | 4.00 |" in readme.training(results)
    assert "| `KronPSGD` | 0.003 | not reached | not reached |" in readme.training(results)
    for name in ROWS:
        section = readme.SECTIONS[name](results)
        command = "train --steps 400 --width 128 --layers 3 --context 64" if name == "train" else name
        assert section.endswith(f"Reproduce: `rlx-gpu bench {command}`.")
        assert "on synthetic, torch 2.13.0, Triton 3.7.1" in section


def test_readme_sections_without_rows_say_so(tmp_path: Path) -> None:
    for name in ROWS:
        assert readme.SECTIONS[name](tmp_path) == (
            f"Nothing is recorded yet: `rlx-gpu bench {name}` measures and records it."
        )


def test_every_optimizer_of_the_readme_has_its_words_and_its_bytes() -> None:
    lines = readme.optimizers().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(TABLE)
    assert [line for line in lines if "?" in line or "|  |" in line] == []


def test_without_matplotlib_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rlx_gpu.bench.drawing", None)
    with pytest.raises(SystemExit, match="pip install 'rlx-gpu\\[train\\]'"):
        plot.main()
