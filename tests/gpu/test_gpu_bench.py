"""How the benches take time on a GPU: kernels are counted, memory and rates are plausible, wrong kernels are told."""

from __future__ import annotations

import pytest
import torch

from rlx_gpu import TABLE
from rlx_gpu.bench import elementwise, gate, providers, race, timing

SHAPES = [(512, 512)] * 4 + [(512,)]
STATE = 8  # bytes a parameter of two float32 moments


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
def test_a_whole_step_is_two_kernels(optimizer):
    """One computes the scalars, the other steps every tensor."""
    step = providers.ours(optimizer, "float32", race.parameters(SHAPES, "float32", "cuda"))
    step()
    assert timing.launches(step) == 2


@pytest.mark.gpu
def test_a_race_counts_memory_launches_and_host_time():
    params = race.parameters(SHAPES, "float32", "cuda")
    field = race.contenders("AdamW", "float32", params, ["rlx-gpu", "torch fused"], 28.0)
    results, failed = race.race(field, "cuda", race.Effort(rounds=2, repeats=3))
    assert not failed
    case = {"parameters": sum(param.numel() for param in params), "copy_gb_per_s": timing.copy_bandwidth()}
    for row in race.rows(case, field, results):
        assert STATE <= row["state_bytes_per_param"] < STATE + 0.5
        assert row["peak_extra_bytes_per_param"] < 0.5
        assert row["launches"] >= 1
        assert 0 < row["ms"]["p20"] <= row["ms"]["median"]
        assert row["host_ms"] > 0
    assert 0 < race.rows(case, field, results)[0]["share_of_copy"] <= 1.2


@pytest.mark.gpu
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", TABLE)
def test_the_gate_lets_every_optimizer_pass(optimizer, storage):
    """Muon's iteration in bfloat16 too, which Triton's interpreter has no products for."""
    gate.check(optimizer, storage, "cuda")


@pytest.mark.gpu
def test_an_examination_finds_the_bytes_and_no_fault():
    verdict = elementwise.examine("AdamW", "float32", timing.this_arch())
    assert (verdict.bytes_per_param, verdict.fault) == (28.0, None)
    assert elementwise.examine("AdamW", "bfloat16_8bit", timing.this_arch()) == elementwise.Verdict()


@pytest.mark.gpu
def test_a_step_is_timed_with_a_cold_cache():
    """32 MiB fit into the L2 cache of a large GPU, but are read from memory when timed."""
    source = torch.ones(2**25, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = timing.copy_bandwidth()
    rate = 2 * source.numel() / timing.median(lambda: target.copy_(source)) / 1e6
    assert rate < 1.3 * copy
    gate.check("SGD", "float32", "cuda")
