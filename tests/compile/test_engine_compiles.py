"""What the engine hands to Triton compiles, and once: lr, step, weight decay and the number of tensors are data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlx_gpu.table import TABLE

TRIAL = Path(__file__).with_name("engine_trial.py")


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(TRIAL)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", TABLE)
def test_a_step_compiles_its_kernels_once(compiled: dict[str, Any], name: str) -> None:
    variants = compiled[name]
    assert variants["first"].keys() & {"fused_step_kernel", "factored_step_kernel"}
    assert variants["later"] == variants["first"]


def test_another_rule_is_another_variant(compiled: dict[str, Any]) -> None:
    counts = [variants["later"]["fused_step_kernel"] for variants in compiled.values()]
    assert counts == sorted(counts)
    assert len(set(counts)) == len(counts)
