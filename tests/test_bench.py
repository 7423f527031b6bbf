"""The benches' own behaviour, and the README: its tables are current and its examples run."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import rlx_gpu
from rlx_gpu.bench import baselines, cpu, elementwise, gate, host, matrix, providers, race, readme, record, show
from rlx_gpu.bench.choices import chosen
from rlx_gpu.bench.shapes import SHAPES, count, gpt2_124m, llama_8b, matrices, olmoe
from rlx_gpu.cli import app
from rlx_gpu.compile_variants import STORAGES

QUICK = race.Effort(rounds=2, repeats=3, seconds=0.01)
CEILINGS = {"copy_gb_per_s": 100.0, "matmul_tflops": 1.0}
EVERY_ROW = {"bench", "optimizer", "provider", "provider_version", "storage", "tensors", "parameters", "ms"} | {
    "bytes_per_param",
    "copy_gb_per_s",
    "best_peer_over_this",
}


def assert_rows(rows: list[dict]) -> None:
    """In the format of `bench/record.py`."""
    assert rows
    for row in rows:
        assert row.keys() >= EVERY_ROW
        assert ("model" in row) != ("shape" in row)
        assert 0 < row["ms"]["p20"] <= row["ms"]["median"] <= row["ms"]["p80"]
        assert row["storage"] in providers.STORAGES
        json.dumps(row)


def test_readme_tables_follow_from_the_registry_and_the_recorded_rows() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert readme.render(text) == text, "run `python -m rlx_gpu.bench.readme`"


def test_readme_without_a_section_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizers"):
        readme.render("no sections here")


EXAMPLES = re.findall(r"```python\n(.*?)```", readme.README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"example{i}" for i in range(len(EXAMPLES))])
def test_readme_examples_run(example: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-W", "error", "-c", example], env=environment, check=True, timeout=120)


@pytest.mark.parametrize(
    ("model", "tensors", "elements"),
    [
        ("gpt2-124m", 148, 124_439_808),
        ("llama-1b", 146, 1_235_814_400),
        ("llama-8b-shard", 291, 8_030_261_248 // 8),
        ("moe", 531, 1_282_017_280),
        ("vit", 392, 304_326_632),
        ("many-small", 5000, 20_480_000),
        ("square-1b", 64, 2**30),
    ],
)
def test_shapes_have_the_checkpoints_tensors_and_elements(model: str, tensors: int, elements: int) -> None:
    assert (len(SHAPES[model]()), count(SHAPES[model]())) == (tensors, elements)
    hidden = matrices(model)
    assert hidden and all(len(shape) == 2 for shape in hidden)
    assert not any(shape in hidden for shape in SHAPES[model]() if max(shape) > 20_000)


def test_shares_of_a_model_come_from_the_whole_one() -> None:
    assert count(llama_8b()) == 8_030_261_248
    assert count(olmoe()) == 6_919_161_856
    assert set(SHAPES) == {"gpt2-124m", "llama-1b", "llama-8b-shard", "moe", "vit", "many-small", "square-1b"}
    assert len(matrices("gpt2-124m")) == 48
    assert len(matrices("llama-1b")) == 16 * 7
    assert len(matrices("moe")) == 16 * (4 + 1 + 3 * 8)


def test_rows_are_appended_with_what_they_were_measured_on(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    record.append("any", [{"value": 1}], path)
    record.append("any", [{"value": 2}], path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["value"] for row in rows] == [1, 2]
    assert rows[0].keys() >= {"date", "commit", "device", "driver", "python", "torch", "triton", "cuda"}
    assert rows[0]["date"] == rows[1]["date"]


def test_spread_is_median_and_quintiles() -> None:
    assert record.spread([5.0, 1.0, 4.0, 2.0, 3.0]) == {"median": 3.0, "p20": 1.8, "p80": 4.2}
    assert record.spread([1.0, 1.0, 100.0])["p20"] == 1.0


def test_names_are_read_in_any_case_and_with_commas() -> None:
    assert chosen("--optimizer", ["adamw,LION", "lion"], ["AdamW", "Lion"], ()) == ["AdamW", "Lion"]
    assert chosen("--optimizer", None, ["AdamW", "Lion"], ["Lion"]) == ["Lion"]
    with pytest.raises(typer.BadParameter, match="'adam' is none of AdamW"):
        chosen("--optimizer", ["adam"], ["AdamW"], ())


def test_the_table_of_peers_is_consistent() -> None:
    modes = [(peer.name, optimizer) for peer in providers.PEERS for optimizer in peer.classes]
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


@pytest.mark.parametrize("storage", STORAGES)
def test_the_gate_lets_right_kernels_pass(storage: str) -> None:
    gate.check("Lion", storage, "cpu")


@pytest.mark.parametrize(("optimizer", "other"), [("AdamW", "Adam"), ("KronPSGD", "Muon"), ("SGD", "Lion")])
@pytest.mark.parametrize("storage", ["float32", "bfloat16_stochastic"])
def test_the_gate_refuses_a_wrong_kernel(
    library_products, monkeypatch, optimizer: str, other: str, storage: str
) -> None:
    wrong = getattr(rlx_gpu, other)
    monkeypatch.setitem(vars(rlx_gpu), optimizer, lambda momentum=None, **options: wrong(**options))
    with pytest.raises(gate.ParityError, match=rf"{optimizer} in {storage} on cpu: tensor .* differs"):
        gate.check(optimizer, storage, "cpu")


def test_the_gate_refuses_what_is_no_number() -> None:
    values, start = np.ones(3), np.zeros(3)
    for optimizer in ("AdamW", "Muon"):
        assert gate.difference(optimizer, "float32", values, values, start) == ""
        assert gate.difference(optimizer, "float32", np.array([1.0, np.nan, 1.0]), values, start)


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
    from rlx_gpu import launch

    monkeypatch.setattr(launch, "launch", launch.launch)  # the bench replaces it; put it back
    rows = host.measure(count=7, repeats=5)
    assert [row["provider"] for row in rows[:8:2]] == [
        "rlx-gpu",
        "rlx-gpu, gradients moved",
        "torch fused",
        "torch foreach",
    ]
    assert {row["caches"] for row in rows} == {"cold", "steady"}
    assert all(row["us_per_tensor"]["median"] > 0 for row in rows)
    assert_rows(rows)


def test_the_cpu_bench_times_the_reference_beside_torch() -> None:
    rows, failed = cpu.measure("AdamW", "float32", [(8, 6), (6,)], ["rlx-gpu", "torch fused"], QUICK)
    assert not failed
    assert [row["provider"] for row in rows] == ["rlx-gpu", "torch fused"]
    assert_rows(rows)
    assert count(gpt2_124m()[cpu.BLOCK]) == 7_087_872


@pytest.fixture
def library_products(monkeypatch):
    """Matrices are multiplied by torch: Triton's interpreter multiplies no bfloat16."""
    for name in ("newton_schulz", "products"):
        module = importlib.import_module(f"rlx_gpu.matrix.{name}")
        monkeypatch.setattr(module, "runs_kernels", lambda device: False)


@pytest.fixture
def no_gpu_needed(monkeypatch, library_products):
    """What a bench asks a GPU for is answered by the CPU."""
    on_cpu = partial(race.parameters, device="cpu")
    for bench in (elementwise, matrix):
        monkeypatch.setattr(bench, "this_arch", lambda: "sm_90")
        monkeypatch.setattr(bench, "copy_bandwidth", lambda: CEILINGS["copy_gb_per_s"])
        monkeypatch.setattr(bench, "parameters", lambda shapes, dtype, device: on_cpu([(8, 6), (6, 6)], dtype))
    monkeypatch.setattr(matrix, "matmul_rate", lambda: CEILINGS["matmul_tflops"])


def test_the_elementwise_bench_records_ours_beside_torch_and_what_is_wrong(
    no_gpu_needed, monkeypatch, tmp_path
) -> None:
    verdicts = {"AdamW": elementwise.Verdict(28.0), "Lion": elementwise.Verdict(fault="Lion is wrong")}
    monkeypatch.setattr(elementwise, "examined", lambda cases, arch: [(case, verdicts[case[0]]) for case in cases])
    path = tmp_path / "rows.jsonl"
    arguments = ["--shapes", "gpt2-124m,moe", "--optimizer", "adamw,lion", "--storage", "float32"]
    effort = ["--providers", "rlx-gpu,torch fused", "--rounds", "1", "--repeats", "3", "--json", str(path)]
    done = CliRunner().invoke(app, ["bench", "elementwise", *arguments, *effort])
    assert done.exit_code == 1, "a wrong kernel is no success"
    assert "Lion is wrong; not timed" in done.stderr
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert_rows(rows)
    assert [(row["model"], row["provider"]) for row in rows] == [
        (model, provider) for model in ("gpt2-124m", "moe") for provider in ("rlx-gpu", "torch fused")
    ]
    assert rows[0]["share_of_copy"] == pytest.approx(28.0 * 84 / rows[0]["ms"]["median"] / 1e8, rel=0.05, abs=1e-4)
    assert rows[1]["bytes_per_param"] is None


def test_the_matrix_bench_records_whole_steps(no_gpu_needed, monkeypatch, tmp_path) -> None:
    on_cpu = gate.check
    monkeypatch.setattr(gate, "check", lambda optimizer, storage, device: on_cpu(optimizer, storage, "cpu"))
    path = tmp_path / "rows.jsonl"
    arguments = ["--optimizer", "muon,soap,kronpsgd", "--providers", "rlx-gpu,torch,batched cuBLAS"]
    done = CliRunner().invoke(
        app, ["bench", "matrix", *arguments, "--rounds", "1", "--repeats", "3", "--json", str(path)]
    )
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert_rows(rows)
    found = {(row["optimizer"], row.get("variant"), row["provider"]) for row in rows}
    assert found >= {("Muon", None, name) for name in ("rlx-gpu", "torch", "batched cuBLAS")}
    assert found >= {("SOAP", phase, "rlx-gpu") for phase in matrix.PHASES}
    assert ("KronPSGD", None, "rlx-gpu") in found
    muon = next(row for row in rows if row["optimizer"] == "Muon")
    assert muon["matmul_tflops"] == CEILINGS["matmul_tflops"]


@pytest.mark.parametrize("shape", [(2, 6, 18), (2, 12, 8)])
def test_newton_schulz_is_checked_and_timed_in_every_form(library_products, shape) -> None:
    rows, failed = matrix.newton_schulz(shape, "cpu", QUICK, {"bench": "matrix", **CEILINGS})
    assert not failed
    assert_rows(rows)
    names = {row["provider"] for row in rows}
    assert names >= {"rlx-gpu", "rlx-gpu, plain", "rlx-gpu, symmetric", "batched cuBLAS", "torch"}
    assert ("rlx-gpu, gram" in names) == (shape == (2, 6, 18))


@pytest.mark.parametrize("storage", matrix.PRODUCT_ERROR)
def test_symmetric_products_are_checked_and_timed(library_products, monkeypatch, storage: str) -> None:
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


def test_the_report_leaves_empty_columns_out(tmp_path) -> None:
    row = {"shape": [2, 3], "optimizer": "x", "storage": "float32", "provider": "rlx-gpu"}
    row |= {"ms": {"median": 1.0, "p20": 0.5, "p80": 2.0}, "launches": 3}
    drawn = show.table([row])
    assert [column.header for column in drawn.columns] == [
        *("on", "optimizer", "storage", "provider", "ms", "p20", "p80", "launches")
    ]


@pytest.mark.parametrize("bench", ["elementwise", "matrix", "host", "cpu", "train", "plot"])
def test_every_bench_is_a_command_with_help(bench: str) -> None:
    done = CliRunner().invoke(app, ["bench", bench, "--help"])
    assert done.exit_code == 0, done.output
    summary = importlib.import_module(f"rlx_gpu.bench.{bench}").main.__doc__.split()
    assert " ".join(summary[:4]) in " ".join(done.output.split())


def test_an_unknown_bench_or_name_is_refused() -> None:
    assert CliRunner().invoke(app, ["bench", "nothing"]).exit_code == 2
    done = CliRunner().invoke(app, ["bench", "matrix", "--optimizer", "Mion"])
    assert done.exit_code == 2
    assert "'Mion' is none of" in " ".join(done.output.replace("│", "").split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("bench", ["elementwise", "matrix"])
def test_a_gpu_bench_without_a_gpu_says_so(bench: str) -> None:
    done = CliRunner().invoke(app, ["bench", bench])
    assert done.exit_code == 1
    assert "needs a CUDA device" in f"{done.output}{done.exception}"
