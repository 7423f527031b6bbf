"""The cache that all compilations of one test run share: what the report has compiled, no trial compiles again."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """An empty folder at the start of every test run, which the processes of a run share."""
    if worker_id == "master":
        return tmp_path_factory.mktemp("triton")
    folder = tmp_path_factory.getbasetemp().parent / "triton"
    folder.mkdir(exist_ok=True)
    return folder
