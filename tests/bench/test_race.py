"""Who races and how: the table of peers, taking turns, and what each bench times, on the CPU."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from recorded_rows import CEILINGS, assert_rows

import rlx_gpu
from rlx_gpu.bench import baselines, cpu, gate, host, matrix, providers, race
from rlx_gpu.bench.shapes import count
from rlx_gpu.kernels.formats import STORAGES
from rlx_gpu.table import TABLE

QUICK = race.Effort(rounds=2, repeats=3, seconds=0.01)


def test_the_table_of_peers_is_consistent() -> None:
    modes = [(peer.name, name, device) for peer in providers.PEERS for name in peer.classes for device in peer.devices]
    assert len(modes) == len(set(modes)), "two entries for one peer and optimizer"
    for peer in providers.PEERS:
        assert peer.classes.keys() <= rlx_gpu.TABLE.keys()
        assert peer.storages.keys() <= providers.STORAGES.keys()
    ours = {name for name, storage in providers.STORAGES.items() if storage.ours is not None}
    assert ours == set(STORAGES), "the bench and `rlx-gpu kernels` name the same formats"


def test_peers_are_chosen_by_what_they_do_and_by_name() -> None:
    assert {"torch fused", "torch foreach"} <= {peer.name for peer in providers.peers("AdamW", "float32", "cpu")}
    assert [peer.name for peer in providers.peers("AdamW", "float32", "cpu", ["torch compiled"])] == ["torch compiled"]
    assert not providers.peers("Sophia", "float32", "cpu")
    assert not providers.peers("AdamW", "float16", "cpu")
    absent = providers.Peer("absent", "absent", "no_such_package.optim", {}, {})
    assert not absent.installed


@pytest.mark.parametrize("optimizer", rlx_gpu.TABLE)
def test_every_installed_peer_takes_its_options_and_steps(optimizer: str) -> None:
    for storage in providers.STORAGES:
        for peer in providers.peers(optimizer, storage, "cpu"):
            params = race.parameters([(8, 6), (6, 6)], providers.STORAGES[storage].param, "cpu")
            for param in params:
                param.data.mul_(2.0**-12)  # so that bfloat16 does not round a step away
            before = [param.detach().clone() for param in params]
            step = peer.step(optimizer, storage, params)
            for _ in range(7):  # a rectified step may be none at first
                step()
            assert all((a != b).any() for a, b in zip(params, before, strict=True)), f"{peer.name}, {storage}"


def test_a_race_goes_on_without_who_fails() -> None:
    def broken() -> None:
        raise MemoryError("too large\nsecond line")

    field = [
        race.Contender("rlx-gpu", "1", lambda: lambda: None, bytes_per_param=8.0),
        race.Contender("good", "2", lambda: partial(sum, range(20_000))),
        race.Contender("bad", "3", lambda: broken),
    ]
    results, failed = race.race(field, "cpu", QUICK)
    assert failed == {"bad": "MemoryError: too large"}
    assert {name: len(result.ms) for name, result in results.items()} == {"rlx-gpu": 6, "good": 6}
    found = race.rows({"parameters": 1000, "copy_gb_per_s": 1.0}, field, results)
    assert [row["provider"] for row in found] == ["rlx-gpu", "good"]
    assert found[0]["bytes_per_param"] == 8.0
    assert found[0]["best_peer_over_this"] > 1.0 == found[1]["best_peer_over_this"]
    assert found[1]["bytes_per_param"] is None


def test_traffic_is_bytes_over_time_and_a_share_of_a_copy() -> None:
    case = {"parameters": 10**9, "copy_gb_per_s": 4000.0}
    assert race.traffic(28.0, case, 10.0) == {"bytes_per_param": 28.0, "gb_per_s": 2800.0, "share_of_copy": 0.7}


def test_ten_steps_are_split_into_the_renewal_and_the_others() -> None:
    phases = matrix.by_phase([1.0] * 4 + [9.0] + [1.0] * 5 + [2.0] * 9 + [8.0])
    assert phases["refresh"] == [9.0, 8.0]
    assert phases["steady"] == [1.0] * 9 + [2.0] * 9
    assert phases["mean"] == [1.8, 2.6]


def test_the_host_bench_times_every_provider(monkeypatch) -> None:
    from rlx_gpu.engine import launch

    monkeypatch.setattr(launch, "launch", launch.launch)  # the bench replaces it; put it back
    rows = host.measure(count=7, repeats=5)
    assert [row["provider"] for row in rows[:10:2]] == [
        "rlx-gpu",
        "rlx-gpu, gradients moved",
        "rlx-gpu, changing sets",
        "torch fused",
        "torch foreach",
    ]
    assert {row["caches"] for row in rows} == {"cold", "steady"}
    assert all(row["us_per_tensor"]["median"] > 0 for row in rows)
    assert_rows(rows)


@pytest.mark.parametrize("present", [None, partial(cpu.every, 2), cpu.never_the_same])
def test_the_cpu_bench_times_ours_beside_torch(present) -> None:
    case = cpu.Case(cpu.LARGE, lambda: [(8, 6), (6,), (5,)], "AdamW", "float32", present)
    rows, failed = cpu.measure(case, ["rlx-gpu", "torch fused"], QUICK)
    assert not failed
    assert [row["provider"] for row in rows] == ["rlx-gpu", "torch fused"]
    assert all(row["threads"] == torch.get_num_threads() for row in rows)
    assert_rows(rows)


def test_the_tensors_of_the_cpu_bench() -> None:
    assert count(cpu.large()) == 9_999_360 and count(cpu.small()) == 40_000 and count(cpu.blocks()) == 3_145_728
    assert list(cpu.every(7, 15, 0)) == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13]
    halves = [frozenset(cpu.never_the_same(5000, step)) for step in range(4)]
    assert len(set(halves)) == 4 and all(len(half) == 2500 for half in halves)
    assert {case.optimizer for case in cpu.CASES} == set(TABLE) and not any("," in model for model in cpu.MODELS)


def test_gradients_that_a_step_does_not_find_are_back_after_it() -> None:
    params = race.parameters([(3,)] * 4, "float32", "cpu")
    grads = [param.grad for param in params]
    seen = []
    step = cpu.finding(
        lambda: lambda: seen.append([param.grad is not None for param in params]), params, partial(cpu.every, 2)
    )
    step()
    assert seen == [[True] * 4, [False, True, False, True]] and all(
        a.grad is b for a, b in zip(params, grads, strict=True)
    )


@pytest.mark.parametrize("shape", [(2, 6, 18), (2, 12, 8)])
def test_newton_schulz_is_checked_and_timed_in_every_form(library_products, shape) -> None:
    rows, failed = matrix.newton_schulz(shape, "cpu", QUICK, {"bench": "matrix", **CEILINGS})
    assert not failed
    assert_rows(rows)
    names = {row["provider"] for row in rows}
    assert names >= {"rlx-gpu", "rlx-gpu, plain", "rlx-gpu, symmetric", "batched cuBLAS", "torch"}
    assert ("rlx-gpu, gram" in names) == (shape == (2, 6, 18))


@pytest.mark.parametrize("storage", matrix.PRODUCT_ERROR)
def test_symmetric_products_are_checked_and_timed(monkeypatch, storage: str) -> None:
    from rlx_gpu.matrix import products

    case = {"bench": "matrix", **CEILINGS}
    rows, failed = matrix.symmetric_product(16, storage, "cpu", QUICK, dict(case))
    assert not failed
    assert_rows(rows)
    right = products.symmetric_product
    monkeypatch.setattr(products, "symmetric_product", lambda x, out: right(x, out=out, alpha=1.01))
    with pytest.raises(gate.ParityError, match="symmetric_product of 16"):
        matrix.symmetric_product(16, storage, "cpu", QUICK, dict(case))


def test_the_baselines_compute_what_they_stand_for() -> None:
    x = torch.randn(3, 9, 14, dtype=torch.float64)
    exact = torch.stack([baselines.exact_newton_schulz(matrix) for matrix in x])
    want = np.stack([rlx_gpu.reference.newton_schulz(matrix) for matrix in x.numpy()])
    np.testing.assert_allclose(exact.numpy(), want, rtol=0, atol=1e-6)  # eps is added to a norm of about 11
    assert matrix.error(baselines.batched_newton_schulz(x), exact) < matrix.ITERATION_ERROR
    params = race.parameters([(6, 10), (10, 6), (6, 10)], "float32", "cpu")
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
    for twin, param in zip(twins, params, strict=True):
        twin.grad = param.grad
    theirs = torch.optim.Muon(twins, lr=1e-3, weight_decay=0.1)
    step = baselines.batched_muon(params)
    for _ in range(3):
        step()
        theirs.step()
    for twin, param in zip(twins, params, strict=True):  # three steps of at most lr · √(10/6), each 5% off
        torch.testing.assert_close(param, twin, rtol=0, atol=3 * 1.3e-3 * 0.05)
