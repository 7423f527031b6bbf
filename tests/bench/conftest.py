"""What the benches' tests share: charts drawn once, and matrix products in torch."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from recorded_rows import ROWS, write

from rlx_gpu.bench import plot


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders with rows of every bench, and with the charts of them."""
    results = write(tmp_path_factory.mktemp("results"), {name: make() for name, make in ROWS.items()})
    plots = tmp_path_factory.mktemp("plots")
    assert set(plot.draw(results, plots).values()) == {"drawn"}
    return results, plots


@pytest.fixture
def library_products(monkeypatch):
    """Matrices are multiplied by torch: the interpreted kernels give the same and take many times as long."""
    for name in ("newton_schulz", "products"):
        module = importlib.import_module(f"rlx_gpu.matrix.{name}")
        monkeypatch.setattr(module, "on_host", lambda device: True)
