"""The command line: what each command prints, its exit code, and what it does without the optional packages."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import python, user_environment
from typer.testing import CliRunner, Result

from rlx_gpu.cli import app
from rlx_gpu.kernels.formats import STORAGES
from rlx_gpu.table import TABLE
from rlx_gpu.train.checkpoint import load_checkpoint

TINY = ["--batch-size", "2", "--context", "8", "--width", "16", "--layers", "1", "--warmup", "2"]
PNG = b"\x89PNG\r\n\x1a\n"


on_the_host = [pytest.mark.usefixtures("path"), pytest.mark.parametrize("path", ["host"], indirect=True)]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def unfinish(folder: Path) -> None:
    """Leaves a folder as if its run had stopped after the first step."""
    path = folder / "checkpoint.pt"
    torch.save(load_checkpoint(path) | {"step": 1}, path)


def test_help_lists_the_commands_and_loads_nothing_heavy() -> None:
    done = python(
        "import sys; sys.argv = ['rlx-gpu', '--help']\n"
        "from rlx_gpu.cli import main\n"
        "try: main()\n"
        "finally: print('LOADED', {'numpy', 'torch', 'triton', 'matplotlib', 'cupy'} & set(sys.modules))"
    )
    assert done.returncode == 0, done.stderr
    for command in ("train", "doctor", "kernels", "parity", "bench"):
        assert command in done.stdout
    assert "LOADED set()" in done.stdout
    assert "check this machine and the kernels, compile them, time them" in " ".join(done.stdout.split())


@pytest.mark.parametrize("command", ["kernels", "parity"])
def test_help_names_the_storages(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert f": {', '.join(STORAGES)}." in invoke(command, "--help").output


def test_the_package_gives_its_names_when_they_are_asked_for() -> None:
    done = python(
        "import sys, rlx_gpu; assert 'numpy' not in sys.modules\n"
        "from rlx_gpu import *\n"
        "assert AdamW is rlx_gpu.AdamW and TABLE is rlx_gpu.TABLE and {'AdamW', 'optim'} <= set(dir(rlx_gpu))"
    )
    assert done.returncode == 0, done.stderr


def test_version_and_module_are_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "rlx_gpu", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, invoke("--version").stdout)
    assert done.stdout.startswith("rlx-gpu ")


def test_without_typer_the_message_names_the_extra() -> None:
    done = python("import sys; sys.modules['typer'] = None; import rlx_gpu.cli")
    assert done.returncode == 1
    assert "pip install 'rlx-gpu[cli]'" in done.stderr


@pytest.mark.parametrize("missing", ["matplotlib", "safetensors", "torch"])
def test_train_without_a_package_says_so_before_it_trains(missing: str) -> None:
    code = f"import sys; sys.modules['{missing}'] = None; sys.argv = ['rlx-gpu', 'train']"
    done = python(f"{code}\nfrom rlx_gpu.cli import main\nmain()")
    assert done.returncode == 1
    assert f"error: training needs {missing}" in done.stderr and "pip install 'rlx-gpu[train]'" in done.stderr


class TestTrain:
    pytestmark = on_the_host

    def test_one_run_leaves_a_chart_a_table_and_a_sample(self, tmp_path: Path) -> None:
        done = invoke("train", "--optimizer", "ADAMW", "--steps", "6", *TINY, "--out", str(tmp_path))
        assert done.exit_code == 0, done.output
        chart = (tmp_path / "loss.png").read_bytes()
        assert chart.startswith(PNG) and len(chart) > 10_000
        for word in ("AdamW", "B/param", "8.00", "a sample", "def ", "step 6/6", "Loss curve:"):
            assert word in done.output
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6

    def test_all_compares_every_optimizer_from_the_same_start(self, tmp_path: Path) -> None:
        arguments = ["train", "--optimizer", "all", "--steps", "3", *TINY, "--out", str(tmp_path)]
        done = invoke(*arguments)
        assert done.exit_code == 0, done.output
        assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
        starts = set()
        for name in TABLE:
            assert f" {name} " in done.output
            starts.add(json.loads((tmp_path / name.lower() / "metrics.jsonl").read_text().splitlines()[0])["loss"])
        assert len(starts) == 1
        assert "own" in done.output  # Adafactor's learning rate is its own
        unfinish(tmp_path / "mars")
        before = contents(tmp_path)
        refused = invoke(*arguments)
        assert refused.exit_code == 2 and f"error: {tmp_path / 'mars'} holds an unfinished run" in refused.stderr
        assert contents(tmp_path) == before
        (tmp_path / "loss.png").unlink()
        (tmp_path / "lion" / "checkpoint.pt").unlink()
        assert invoke(*arguments, "--resume").exit_code == 0
        assert (tmp_path / "loss.png").exists() and (tmp_path / "lion" / "checkpoint.pt").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--optimizer", "adamx"], "there is no optimizer 'adamx'; choose from all, SGD, Adam"),
            (["--device", "cuda:99"], "--device cuda:99: torch sees"),
            (["--device", "meta"], "cpu and cuda"),
            (["--device", "gpu"], "--device 'gpu' is no torch device"),
            (["--resume"], "there is no checkpoint at"),
            (["--resume", "--optimizer", "all"], "there is nothing to resume in"),
            (["--resume", "--overwrite"], "give one of them"),
            (["--seed", "9" * 23], "--seed must be at most 4294967295"),
            (["--context", "10000000"], "--context must be below"),
            (["--lr", "nan"], "lr"),
            (["--state-dtype", "float7"], "float7"),
            (["--lr", "-1"], "lr"),
            (["--width", "10"], "--width must be a multiple"),
            (["--data", "nowhere"], "nowhere has 0 Python source files"),
        ],
    )
    def test_a_bad_option_is_named(self, arguments: list[str], message: str, tmp_path: Path) -> None:
        done = invoke("train", "--steps", "2", *TINY, "--out", str(tmp_path), *arguments)
        assert done.exit_code == 2
        assert done.stderr.startswith("error: ") and message in done.stderr
        assert not done.stdout and not contents(tmp_path)

    @pytest.mark.parametrize("arguments", [["--lr", "nan"], ["--context", "10000000"]])
    def test_a_bad_option_leaves_an_earlier_run_alone(self, arguments: list[str], tmp_path: Path) -> None:
        train = ["train", "--steps", "2", *TINY, "--out", str(tmp_path)]
        assert invoke(*train).exit_code == 0
        before = contents(tmp_path)
        done = invoke(*train, *arguments)
        assert done.exit_code == 2 and not done.stdout and contents(tmp_path) == before

    @pytest.mark.parametrize("out", ["file", "file/below"])
    def test_results_that_cannot_be_written_are_said(self, out: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        done = invoke("train", "--steps", "2", *TINY, "--out", str(tmp_path / out))
        assert done.exit_code == 2 and f"error: results cannot be written to {tmp_path / out} (" in done.stderr
        assert (tmp_path / "file").read_text() == "mine"

    def test_divergence_is_said_and_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "60")
        done = invoke("train", "--optimizer", "sgd", "--lr", "1e30", "--steps", "9", *TINY, "--out", str(tmp_path))
        assert done.exit_code == 1
        assert "SGD diverged with --lr 1e+30" in done.output and "a sample" not in done.output
        # In the table's last column, which a narrow terminal must not cut off.
        assert re.search(r"B/param(?s:.*) diverged at step \d", " ".join(done.output.split()))

    def test_a_finished_run_is_replaced_and_an_unfinished_one_only_when_told_to(self, tmp_path: Path) -> None:
        arguments = ["train", "--steps", "2", *TINY, "--out", str(tmp_path)]
        assert "replaces" not in invoke(*arguments).output
        again = invoke(*arguments)
        assert again.exit_code == 0 and f"The first step replaces the earlier run in {tmp_path}" in again.output
        unfinish(tmp_path)
        before = contents(tmp_path)
        refused = invoke(*arguments)
        assert refused.exit_code == 2 and contents(tmp_path) == before
        lines = refused.stderr.splitlines()
        assert lines[0] == f"error: {tmp_path} holds an unfinished run, at step 1 of 2"
        assert lines[1].startswith("Go on with: ") and lines[1].endswith(" --resume")
        assert lines[2].startswith("Start anew: ") and lines[2].endswith(" --overwrite")
        assert invoke(*arguments, "--overwrite").exit_code == 0
        assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 2

    def test_a_checkpoint_that_cannot_be_read_is_replaced_only_when_told_to(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
        arguments = ["train", "--steps", "2", *TINY, "--out", str(tmp_path)]
        done = invoke(*arguments)
        assert done.exit_code == 2 and "cannot be read" in done.stderr and "--overwrite" in done.stderr
        assert invoke(*arguments, "--overwrite").exit_code == 0


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "a run"
    command = [sys.executable, "-m", "rlx_gpu", "train", "--steps", "2000", *TINY, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=user_environment())
    log = out / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    go_on = shlex.split(printed.split("Go on with: ")[1])
    assert go_on[-1] == "--resume" and str(out) in go_on
    before = len(log.read_text().splitlines())
    assert f"Stopped after step {before}" in " ".join(printed.split())
    refused = subprocess.run(command, capture_output=True, text=True, env=user_environment())
    assert refused.returncode == 2 and f"at step {before} of 2000\nGo on with: {shlex.join(go_on)}\n" in refused.stderr
    process = subprocess.Popen([*command, "--resume"], stdout=subprocess.DEVNULL, env=user_environment())
    while log.read_text().count("\n") <= before and time.monotonic() < deadline + 60:
        time.sleep(0.005)
    process.terminate()  # SIGTERM is honoured like Ctrl-C
    assert process.wait(timeout=60) == 130
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()[: before + 1]] == list(
        range(1, before + 2)
    )
