"""The benches as commands: what they take, record and show, and how they refuse."""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import typer
from recorded_rows import CEILINGS, assert_rows
from typer.testing import CliRunner

from rlx_gpu.bench import choices, elementwise, gate, matrix, plot, providers, race, show
from rlx_gpu.bench.choices import chosen
from rlx_gpu.bench.show import Report
from rlx_gpu.cli import app


def test_names_are_read_in_any_case_and_with_commas() -> None:
    assert chosen("--optimizer", ["adamw,LION", "lion"], ["AdamW", "Lion"], ()) == ["AdamW", "Lion"]
    assert chosen("--optimizer", None, ["AdamW", "Lion"], ["Lion"]) == ["Lion"]
    assert chosen("--optimizer", ["All"], ["AdamW", "Lion"], ["Lion"]) == ["AdamW", "Lion"]
    with pytest.raises(typer.BadParameter, match="there is no optimizer 'adam'; choose from AdamW"):
        chosen("--optimizer", ["adam"], ["AdamW"], ())


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
    assert "there is no optimizer 'Mion'" in " ".join(done.output.replace("│", "").split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("bench", ["elementwise", "matrix"])
def test_a_gpu_bench_without_a_gpu_says_so(bench: str) -> None:
    done = CliRunner().invoke(app, ["bench", bench])
    assert done.exit_code == 1
    assert "needs a CUDA device" in f"{done.output}{done.exception}"


def test_without_matplotlib_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rlx_gpu.bench.drawing", None)
    with pytest.raises(SystemExit, match="pip install 'rlx-gpu\\[train\\]'"):
        plot.main()


@pytest.mark.parametrize("bench", ["host", "cpu", "train", "elementwise", "matrix"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(bench: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", bench, "--json", str(tmp_path)])
    assert done.exit_code == 2
    assert "cannot append to" in done.stderr


def test_a_provider_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which the command takes back, and this restores
    monkeypatch.setattr(providers.Peer, "installed", property(lambda peer: peer.name == "torch fused"))
    done = CliRunner().invoke(app, ["bench", "cpu", "--providers", "optimi,torch fused", "--json", str(tmp_path / "a")])
    assert done.exit_code == 2
    assert "pip install torch-optimi" in " ".join(done.stderr.replace("│", "").split())
    assert choices.chosen_providers(["all"]) == list(providers.NAMES)
    assert choices.chosen_providers(["torch fused"]) == ["torch fused"]
    assert choices.chosen_providers(None) == []


def test_a_bench_that_measures_nothing_fails(tmp_path: Path) -> None:
    with pytest.raises(typer.Exit) as ended, Report("cpu", 1, tmp_path / "rows.jsonl"):
        pass
    assert ended.value.exit_code == 1


def test_tables_are_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    row = {"model": "a model with a long name", "optimizer": "AdamW", "storage": "bfloat16_stochastic"}
    row |= {"provider": "pytorch_optimizer", "ms": dict.fromkeys(("median", "p20", "p80"), 12345.678)}
    with Report("cpu", 1, tmp_path / "rows.jsonl") as report:
        report.finish([row])
    shown = " ".join(capsys.readouterr().out.split())
    assert "…" not in shown
    assert "a model with a long name AdamW bfloat16_stochastic pytorch_optimizer 12345.678" in shown
