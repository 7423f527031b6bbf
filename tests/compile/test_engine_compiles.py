"""What the engine hands to Triton compiles, and once: hyperparameters, steps, tensors and their gradients are data.

The report, from which all else about compiled kernels is read, lists what steps launch and nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from compile_runs import one_worker, run_json

from rlx_gpu.table import TABLE

pytestmark = one_worker()
TRIAL = Path(__file__).with_name("engine_trial.py")


@pytest.fixture(scope="module")
def engine(cache: Path) -> dict[str, Any]:
    return run_json(sys.executable, cache, str(TRIAL))


@pytest.mark.parametrize("name", TABLE)
def test_a_step_compiles_its_kernels_once(engine: dict[str, Any], name: str) -> None:
    """But for symmetric products: which of their variants a layout takes is tested with the matrix kernels."""
    first, later = (without_matrices(engine["trials"][name][when]) for when in ("first", "later"))
    assert first.keys() >= {"fused_step_kernel", "rows_kernel"}
    assert later == first


@pytest.mark.parametrize("name", TABLE)
def test_a_plan_has_compiled_what_its_steps_launch(engine: dict[str, Any], name: str) -> None:
    """So that what is wrong with it comes up before a step has begun; but for matrix kernels, which it cannot know."""
    trial = engine["trials"][name]
    assert without_matrices(trial["planned"]) == without_matrices(trial["first"])


def without_matrices(counts: dict[str, int]) -> dict[str, int]:
    """The variants of all kernels but those that only matrices need."""
    matrices = ("symmetric_product_kernel", "split_kernel", "householder_kernel")
    return {kernel: count for kernel, count in counts.items() if kernel not in matrices}


def test_where_sums_lie_is_data(engine: dict[str, Any]) -> None:
    """Those of gradients of several formats lie side by side, not all of them on a 16-byte boundary."""
    before, after = engine["sums"]
    assert after == before


def test_the_report_lists_what_steps_launch_once_and_nothing_else(engine: dict[str, Any]) -> None:
    assert engine["unlike the report"] == {"launched": [], "reported": [], "twice": []}


def test_another_rule_is_another_variant(engine: dict[str, Any]) -> None:
    """KronPSGD has no elementwise rule of its own: what gathers and applies is SOAP's."""
    trials = engine["trials"].items()
    counts = [trial["later"]["fused_step_kernel"] for name, trial in trials if name != "KronPSGD"]
    assert counts == sorted(counts)
    assert len(set(counts)) == len(counts)
