"""Rows as the benches record them: invented for the charts and the README, and checked for what every one has."""

from __future__ import annotations

import json
import math
import random
import re
from itertools import product
from pathlib import Path
from typing import Any

from rlx_gpu.bench import cpu, providers
from rlx_gpu.bench.matrix import PHASES
from rlx_gpu.bench.providers import OURS
from rlx_gpu.bench.shapes import SHAPES, count
from rlx_gpu.table import TABLE

CEILINGS = {"copy_gb_per_s": 100.0, "matmul_tflops": 1.0}
EVERY_ROW = {"bench", "optimizer", "provider", "provider_version", "storage", "tensors", "parameters", "ms"}
OF_A_STEP = {"bytes_per_param", "copy_gb_per_s", "best_peer_over_this"}
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
MATRIX = [name for name, algorithm in TABLE.items() if algorithm.of_matrices]
ELEMENTWISE = [name for name in TABLE if name not in MATRIX]
BYTES = {"SGD": 20, "Lion": 20, "Sophia": 24, "LAMB": 40, "MARS": 44, "Adafactor": 24}  # the others move 28
MODELS = {model: (len(shapes()), count(shapes())) for model, shapes in SHAPES.items()}


def assert_rows(rows: list[dict]) -> None:
    """Of steps or calls, in the format of `bench/record.py`."""
    assert rows
    for row in rows:
        assert row.keys() >= EVERY_ROW | OF_A_STEP
        assert ("model" in row) != ("shape" in row)
        assert 0 < row["ms"]["p20"] <= row["ms"]["median"] <= row["ms"]["p80"]
        assert row["storage"] in providers.STORAGES
        json.dumps(row)


def peers(optimizer: str) -> list[str]:
    """Those that step an optimizer, installed or not, and for Lion one that no chart has a colour for."""
    known = [peer.name for peer in providers.PEERS if peer.name in SLOWER and optimizer in peer.classes]
    return [*known, *(["unheard-of"] if optimizer == "Lion" else [])]


def spread(median: float) -> dict[str, float]:
    """What is recorded of samples that lie close together."""
    return {"median": median, "p20": 0.99 * median, "p80": 1.02 * median}


def elementwise_rows() -> list[dict[str, Any]]:
    """Every elementwise optimizer on every model, all near the line of a copy."""
    found = []
    for model, (tensors, elements) in MODELS.items():
        for name in ELEMENTWISE:
            for storage, share in (("float32", 1.0), ("bfloat16", 0.5), ("bfloat16_stochastic", 0.5)):
                others = peers(name) if storage != "bfloat16_stochastic" else []
                moved = BYTES.get(name, 28) * share
                for provider in [OURS, *others]:
                    ms = SLOWER[provider] * (moved * elements / 4.2e9 + 0.02)
                    ours = {"bytes_per_param": moved, "gb_per_s": moved * elements / ms / 1e6}
                    ours |= {"share_of_copy": moved * elements / ms / 1e6 / 4286.3}
                    ours |= {"best_peer_over_this": min((SLOWER[peer] for peer in others), default=None)}
                    found.append(
                        {"bench": "elementwise", "optimizer": name, "provider": provider, "model": model}
                        | {"storage": storage, "tensors": tensors, "parameters": elements, "ms": spread(ms)}
                        | {"copy_gb_per_s": 4286.3, "bytes_per_param": None, "best_peer_over_this": None}
                        | (ours if provider == OURS else {})
                    )
    return found


def matrix_rows() -> list[dict[str, Any]]:
    """Newton–Schulz on some shapes, and whole steps of the matrix optimizers."""
    found = []
    ways = {OURS: 1.0, f"{OURS}, gram": 1.1, f"{OURS}, plain": 1.5, "batched cuBLAS": 1.6, "torch": 5.0}
    for shape in ((12, 768, 3072), (32, 2048, 2048), (128, 1024, 2048), (4, 4096, 4096)):
        best = 30 * math.prod(shape) * shape[1] / 6e11 + 0.1
        for provider, factor in ways.items():
            found.append(
                {"bench": "matrix", "optimizer": "newton_schulz", "provider": provider, "shape": list(shape)}
                | {"storage": "bfloat16", "ms": spread(best * factor), "tensors": shape[0]}
                | {"tflops": 400.0 / factor, "share_of_matmul": 0.6 / factor, "parameters": math.prod(shape)}
            )
    whole = [(name, variant) for name in MATRIX for variant in (PHASES if name == "SOAP" else (None,))]
    milliseconds = {OURS: 8.0, "heavyball": 14.0, "pytorch_optimizer": 90.0}
    for (name, variant), (provider, ms) in product(whole, milliseconds.items()):
        found.append(
            {"bench": "matrix", "optimizer": name, "provider": provider, "model": "gpt2-124m"}
            | ({"variant": variant} if variant else {})
            | {"storage": "float32", "ms": spread(ms), "parameters": 124_439_808, "tensors": 148}
        )
    return found


def cpu_rows() -> list[dict[str, Any]]:
    """Two optimizers without a GPU."""
    return [
        {"bench": "cpu", "optimizer": name, "provider": provider, "model": cpu.LARGE, "threads": 2}
        | {"storage": "float32", "ms": spread(ms), "tensors": 30, "parameters": 9_999_360}
        for name in ("AdamW", "Lion")
        for provider, ms in ((OURS, 80.0), ("torch foreach", 20.0))
    ]


def train_row(name: str, lr: float | None, seed: int, place: int) -> dict[str, Any]:
    """A run of training, the seed 0 of a sweep; slower and worse the further down its place."""
    draw, step_ms, floor = random.Random(f"{name}{seed}"), 4 + place / 4, 1.75 + 0.03 * place
    curve = [
        [step * step_ms / 1e3, step, floor + 3.8 * math.exp(-((step / 40) ** 0.6)) + draw.gauss(0, 0.015)]
        for step in range(0, 401, 8)
    ]
    reached = next((point for point in curve if point[2] <= 2.0), [None, None])
    config = {"width": 128, "layers": 3, "context": 64, "batch-size": 32}
    return (
        {"bench": "train", "optimizer": name, "provider": OURS, "model": "byte-gpt", "config": config, "steps": 400}
        | {"phase": "final" if seed else "sweep", "lr": lr, "seed": seed, "target_loss": 2.0, "curve": curve}
        | {"seconds_to_target": reached[0], "steps_to_target": reached[1], "validation_loss": curve[-1][2]}
        | {"diverged": None, "ms": spread(step_ms)}
    )


def train_rows() -> list[dict[str, Any]]:
    """Every optimizer, each slower and worse than the one before; SGD's sweep ends at its highest learning rate."""
    found = []
    for place, name in enumerate(TABLE):
        lr = None if name == "Adafactor" else 3e-3
        found += [train_row(name, rate, 0, place) for rate in (1e-3, lr, *([] if name == "SGD" else [1e-2]))]
        found += [train_row(name, lr, seed, place) for seed in (1, 2, 3)]
    return found


def host_rows() -> list[dict[str, Any]]:
    """Three providers over three numbers of tensors."""
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
