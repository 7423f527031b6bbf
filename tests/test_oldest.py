"""The oldest torch and Triton that are asked for: both drivers agree with the reference there, and a model trains.

They are in an environment that `make test-long` sets up.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from processes import user_environment

ROOT = Path(__file__).parent.parent
OLDEST = os.environ.get("RLX_OLDEST_PYTHON", "")

pytestmark = [pytest.mark.long, pytest.mark.skipif(not OLDEST, reason="make test-long sets up the oldest torch")]


def run(*arguments: str, **variables: str) -> str:
    """What a module prints, run by the interpreter that has the oldest versions."""
    command = [OLDEST, "-m", *arguments]
    environment = user_environment(PYTHONPATH=str(ROOT), **variables)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_versions_are_the_oldest_that_the_project_asks_for() -> None:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    oldest = dict(re.match(r"([a-z]+)>=([0-9.]+)", requirement).groups() for requirement in requirements)
    found = json.loads(run("rlx_gpu", "doctor", "--json"))
    assert found["ok"] and found["paths"]["cpu"] == "host"
    for name in ("torch", "triton"):
        assert found["versions"][name].split("+")[0] == f"{oldest[name]}.0"


# One of each driver: elementwise, by norms, by rows and columns, and of matrices.
@pytest.mark.parametrize("optimizer", ["nadamw", "lamb", "adafactor", "muon", "soap", "kronpsgd"])
def test_parity(optimizer: str) -> None:
    shapes = "scalar,130,7x12:transposed,33:unaligned,0x3"
    found = json.loads(run("rlx_gpu", "parity", "--optimizer", optimizer, "--shapes", shapes, "--json"))
    assert found["passed"] and list(found["devices"]) == ["interpreted", "cpu"]


def test_training(tmp_path: Path) -> None:
    small = ["--steps", "20", "--width", "16", "--layers", "1", "--context", "16", "--batch-size", "4"]
    out = tmp_path / "run"
    assert "step 20/20" in run("rlx_gpu", "train", "--optimizer", "adamw", *small, "--device", "cpu", "--out", str(out))


@pytest.mark.parametrize("tests", ["test_torch_state.py", "test_torch_groups.py"])
def test_face_of_torch(tests: str) -> None:
    run("pytest", str(ROOT / "tests" / "faces" / tests), "-p", "no:cacheprovider", "-q")
