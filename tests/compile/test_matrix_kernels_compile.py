"""What the matrix kernels compile to: tensor core instructions and wide copies, once for all sizes and scalars."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from compile_runs import one_worker, run_json

pytestmark = one_worker()
TRIAL = Path(__file__).with_name("matrix_trial.py")
WARPGROUP = "HGMMA.64x128x16.F32"
COPY = "LDGSTS.E.BYPASS.128"


@pytest.fixture(scope="module")
def trial(cache: Path) -> dict[str, Any]:
    return run_json(sys.executable, cache, str(TRIAL))


def executed(trial: dict[str, Any], name: str, start: str) -> list[str]:
    """The opcodes of a kernel that begin so."""
    return [opcode for opcode in trial["instructions"][name] if opcode.startswith(start)]


@pytest.mark.parametrize("name", ["bfloat16", "float16", "with_c"])
def test_symmetric_products_run_on_warpgroup_tensor_cores(trial, name):
    assert executed(trial, name, "HGMMA") == [WARPGROUP if name == "float16" else f"{WARPGROUP}.BF16"]


def test_float32_products_run_on_tensor_cores_in_tf32(trial):
    assert executed(trial, "float32", "HGMMA") == ["HGMMA.64x128x8.F32.TF32"]


@pytest.mark.parametrize("arch", ["sm_80", "sm_120"])
def test_other_architectures_have_tensor_cores_without_warpgroups(trial, arch):
    assert not executed(trial, arch, "HGMMA") and executed(trial, arch, "HMMA")


def test_other_kernels_do_without_tensor_cores(trial):
    assert not executed(trial, "householder", "HGMMA") and not executed(trial, "householder", "HMMA")


@pytest.mark.parametrize("name", ["bfloat16", "float16", "with_c", "float32", "sm_80", "sm_120"])
def test_aligned_tiles_are_copied_16_bytes_at_a_time(trial, name):
    assert executed(trial, name, "LDGSTS") == [COPY]
    assert executed(trial, name, "STG") == ["STG.E.128"]


def test_unaligned_tiles_are_not(trial):
    assert not executed(trial, "unaligned", "LDGSTS") and executed(trial, "unaligned", "LDG") == ["LDG.E.U16"]


def test_whole_blocks_are_split_16_bytes_at_a_time(trial):
    """The last one of a tensor is masked, number by number."""
    assert executed(trial, "split", "LDG") == ["LDG.E", "LDG.E.128"]
    assert executed(trial, "split", "STG") == ["STG.E", "STG.E.128"]


def test_sizes_batches_and_scalars_share_one_compilation(trial):
    aligned, odd = trial["counts"][:4], trial["counts"][4:]
    kernels = ("symmetric_product_kernel", "split_kernel", "householder_kernel")
    assert aligned == [dict.fromkeys(kernels, 1)] * 4
    assert odd == [{"symmetric_product_kernel": 2, "split_kernel": 1, "householder_kernel": 1}] * 4
