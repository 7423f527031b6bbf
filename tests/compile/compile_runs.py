"""Runs compilations in processes of their own, with every Triton at hand and an empty cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from processes import user_environment

ROOT = Path(__file__).parents[2]
# This interpreter, and those with other versions of Triton that `make compile-matrix` sets up.
_OTHERS = os.environ.get("RLX_TRITON_PYTHONS", "").split(":")
PYTHONS = tuple(dict.fromkeys([sys.executable, *filter(None, _OTHERS)]))
# An architecture takes a minute: all of them are `make compile-matrix`'s, which CI runs too.
ARCHES = ("sm_80", "sm_90", "sm_100") if len(PYTHONS) > 1 else ("sm_90",)


def environment(cache: Path, **extra: str) -> dict[str, str]:
    """This process's environment, but compiling this checkout's kernels into a cache of their own."""
    return user_environment(PYTHONPATH=str(ROOT), TRITON_CACHE_DIR=str(cache), **extra)


def run_json(python: str, cache: Path, *arguments: str):
    """What a command of an interpreter prints, read as JSON."""
    command = [python, *arguments]
    result = subprocess.run(command, env=environment(cache), cwd=cache, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"{' '.join(command)}:\n{result.stderr}"
    return json.loads(result.stdout)
