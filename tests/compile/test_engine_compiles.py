"""What the engine hands to Triton compiles, and once: lr, step, weight decay and the number of tensors are data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from compile_runs import run_json

from rlx_gpu.table import TABLE

TRIAL = Path(__file__).with_name("engine_trial.py")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_json(sys.executable, tmp_path_factory.mktemp("cache"), str(TRIAL))


@pytest.mark.parametrize("name", TABLE)
def test_a_step_compiles_its_kernels_once(compiled: dict[str, Any], name: str) -> None:
    """But for symmetric products: which of their variants a layout takes is tested with the matrix kernels."""
    first, later = (
        {kernel: count for kernel, count in compiled[name][when].items() if kernel != "symmetric_product_kernel"}
        for when in ("first", "later")
    )
    assert first.keys() & {"fused_step_kernel", "factored_step_kernel"}
    assert later == first


def test_another_rule_is_another_variant(compiled: dict[str, Any]) -> None:
    """KronPSGD has no elementwise rule of its own: what gathers and applies is SOAP's."""
    counts = [variants["later"]["fused_step_kernel"] for name, variants in compiled.items() if name != "KronPSGD"]
    assert counts == sorted(counts)
    assert len(set(counts)) == len(counts)
