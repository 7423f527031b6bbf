"""Runs compilations in processes of their own, with every Triton at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from processes import user_environment

ROOT = Path(__file__).parents[2]
# This interpreter, and those with other versions of Triton that `make test-long` sets up.
_OTHERS = os.environ.get("RLX_TRITON_PYTHONS", "").split(":")
PYTHONS = tuple(dict.fromkeys([sys.executable, *filter(None, _OTHERS)]))
# The shared memory that a block can have: https://docs.nvidia.com/cuda/cuda-c-programming-guide, compute capabilities.
SHARED_BYTES = {"sm_90": 227 * 1024, "sm_80": 163 * 1024, "sm_89": 99 * 1024, "sm_100": 227 * 1024, "sm_120": 99 * 1024}
ARCHES = tuple(SHARED_BYTES)


def cases(*choices: tuple[str, ...]) -> list[pytest.param]:
    """Every combination, of which `make test` runs the first; each takes a minute or two."""
    combined = list(product(*choices))
    marks = [[], *[[pytest.mark.long]] * (len(combined) - 1)]
    return [
        pytest.param(one if len(one) > 1 else one[0], id="-".join(map(label, one)), marks=[*mark, one_worker(one[0])])
        for one, mark in zip(combined, marks, strict=True)
    ]


def one_worker(python: str = sys.executable) -> pytest.MarkDecorator:
    """Runs what an interpreter compiles in one process of the tests, so that nothing is compiled twice."""
    return pytest.mark.xdist_group(f"compile-{label(python)}")


def label(choice: str) -> str:
    """Names an interpreter by its virtual environment."""
    return Path(choice).parents[1].name if os.sep in choice else choice


def environment(cache: Path, **extra: str) -> dict[str, str]:
    """This process's environment, but compiling this checkout's kernels into a cache of the tests' own."""
    return user_environment(PYTHONPATH=str(ROOT), TRITON_CACHE_DIR=str(cache), **extra)


def run_json(python: str, cache: Path, *arguments: str):
    """What a command of an interpreter prints, read as JSON."""
    command = [python, *arguments]
    result = subprocess.run(command, env=environment(cache), cwd=cache, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, f"{' '.join(command)}:\n{result.stderr}"
    return json.loads(result.stdout)
