"""The example run: it learns, a resumed run ends in the same bits, and what goes wrong is said in plain words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import user_environment
from safetensors.torch import load_file

from rlx_gpu.table import TABLE
from rlx_gpu.train import loop
from rlx_gpu.train.checkpoint import load_checkpoint, replace_file
from rlx_gpu.train.config import ModelConfig, TrainConfig, TrainError
from rlx_gpu.train.data import Corpus, load_corpus
from rlx_gpu.train.loop import RunResult, named_memory_errors, train

# Without a GPU a user gets the NumPy reference; interpreting the kernels, as test_train_interpreted.py does, is slow.
pytestmark = [
    pytest.mark.usefixtures("path"),
    pytest.mark.parametrize("path", ["host"], indirect=True),
    pytest.mark.xdist_group(__name__),  # what the module prepares is made once
]

CPU = torch.device("cpu")
TINY = ModelConfig(context=8, width=16, layers=1)
STEPS = 13


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus()


def config_of(name: str, corpus: Corpus, **choices: Any) -> TrainConfig:
    lr = TABLE[name].example_lr
    return TrainConfig(
        name,
        **{"steps": STEPS, "batch_size": 2, "lr": lr, "warmup": 3, "model": TINY, "data": corpus.digest, **choices},
    )


def run(config: TrainConfig, corpus: Corpus, out: Path, **how: Any) -> RunResult:
    return train(config, corpus, out, device=CPU, **how)


def stop_after(step: int) -> Callable[[dict[str, Any]], None]:
    """Presses Ctrl-C in the middle of the run."""

    def on_step(record: dict[str, Any]) -> None:
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_step


def same_bits(left: Path, right: Path) -> bool:
    a, b = load_file(left / "model.safetensors"), load_file(right / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_times(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if not key.endswith("_ms")} for record in records]


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_interrupted_and_resumed_run_ends_in_the_same_bits(
    name: str, state_dtype: str, corpus: Corpus, tmp_path: Path
) -> None:
    config = config_of(name, corpus, state_dtype=state_dtype)
    whole = run(config, corpus, tmp_path / "whole")
    assert not whole.interrupted
    for step in (1, 7, 12):
        parted = tmp_path / f"parted{step}"
        stopped = run(config, corpus, parted, on_step=stop_after(step))
        assert stopped.interrupted and len(stopped.history) == step
        assert not run(config, corpus, parted, resume=True).interrupted
        assert same_bits(tmp_path / "whole", parted)
        assert without_times(tmp_path / "whole") == without_times(parted)


@pytest.mark.parametrize("name", TABLE)
def test_every_optimizer_learns(name: str, corpus: Corpus, tmp_path: Path) -> None:
    history = run(config_of(name, corpus, steps=150, batch_size=4), corpus, tmp_path).history
    assert history[-1]["loss"] < history[0]["loss"] - 0.3


def test_comparison_is_fair_and_bits_differ_between_optimizers(corpus: Corpus, tmp_path: Path) -> None:
    run(config_of("AdamW", corpus), corpus, tmp_path / "adamw")
    run(config_of("Lion", corpus), corpus, tmp_path / "lion")
    run(config_of("AdamW", corpus, seed=1), corpus, tmp_path / "seed1")
    adamw, lion, seed1 = (without_times(tmp_path / name) for name in ("adamw", "lion", "seed1"))
    assert adamw[0]["loss"] == lion[0]["loss"] != seed1[0]["loss"]
    assert not same_bits(tmp_path / "adamw", tmp_path / "lion")
    assert not same_bits(tmp_path / "adamw", tmp_path / "seed1")


OPTIONS = "--optimizer adamw --steps 150 --batch-size 2 --context 8 --width 16 --layers 1 --checkpoint-every 25"
COMMAND = [sys.executable, "-m", "rlx_gpu", "train", *OPTIONS.split(), "--out"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    subprocess.run([*COMMAND, str(out)], check=True, stdout=subprocess.DEVNULL, env=user_environment())
    return out


@pytest.mark.parametrize("lines", [1, 30])
def test_killed_process_resumes_to_the_same_bits(lines: int, undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL, between the checkpoints: nothing can be tidied up on the way out."""
    process = subprocess.Popen([*COMMAND, str(tmp_path)], stdout=subprocess.DEVNULL, env=user_environment())
    log = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= lines) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with log.open("a") as file:
        file.write('{"step": 99, "lo')  # a line that the kill cut in two
    subprocess.run([*COMMAND, str(tmp_path), "--resume"], check=True, stdout=subprocess.DEVNULL, env=user_environment())
    assert same_bits(undisturbed, tmp_path)
    assert without_times(undisturbed) == without_times(tmp_path)
    assert [record["step"] for record in without_times(tmp_path)] == list(range(1, 151))


def test_a_crash_while_saving_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    replace_file(path, lambda file: file.write(b"old"))

    def fail(file: Any) -> None:
        file.write(b"half of the n")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        replace_file(path, fail)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("--optimizer", {"optimizer": "Adam"}),
        ("--seed", {"seed": 1}),
        ("--steps", {"steps": STEPS + 1}),
        ("--lr", {"lr": 0.5}),
        ("--batch-size", {"batch_size": 3}),
        ("--warmup", {"warmup": 4}),
        ("--state-dtype", {"state_dtype": "bfloat16"}),
        ("--width", {"model": replace(TINY, width=32)}),
        ("--context", {"model": replace(TINY, context=9)}),
        ("--layers", {"model": replace(TINY, layers=2)}),
        ("--data", {"data": "another"}),
    ],
)
def test_resuming_with_another_choice_names_it(
    option: str, choices: dict[str, Any], corpus: Corpus, tmp_path: Path
) -> None:
    config = config_of("AdamW", corpus)
    run(config, corpus, tmp_path, on_step=stop_after(2))
    with pytest.raises(TrainError, match=option):
        run(replace(config, **choices), corpus, tmp_path, resume=True)
    assert len(load_checkpoint(tmp_path / "checkpoint.pt")["history"]) == 2


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_named(damage: bytes | None, corpus: Corpus, tmp_path: Path) -> None:
    config = config_of("AdamW", corpus)
    run(config, corpus, tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(TrainError, match=r"checkpoint\.pt cannot be read .* with --overwrite"):
        run(config, corpus, tmp_path, resume=True)


def test_a_missing_checkpoint_is_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="there is no checkpoint at"):
        run(config_of("AdamW", corpus), corpus, tmp_path, resume=True)


def test_until_the_first_step_is_done_an_earlier_run_stays_whole(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("AdamW", corpus)
    run(config, corpus, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*arguments: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(loop.Run, "step", fail)
    with pytest.raises(RuntimeError, match="no such kernel"):
        run(config, corpus, tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_replaced_run_leaves_no_results_beside_the_new_one(corpus: Corpus, tmp_path: Path) -> None:
    config = config_of("AdamW", corpus)
    run(config, corpus, tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    (tmp_path / "loss.png").touch()
    assert run(config, corpus, tmp_path, on_step=stop_after(2)).interrupted
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.pt", "metrics.jsonl"]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate")],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_said(error: Exception) -> None:
    with (
        pytest.raises(TrainError, match="does not fit into memory; give a smaller --batch-size"),
        named_memory_errors(),
    ):
        raise error


def test_other_errors_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="something else"), named_memory_errors():
        raise RuntimeError("something else")


def test_a_checkpoint_that_would_run_code_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    torch.save({"format": 1, "config": Path("x")}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainError, match="cannot be read"):
        run(config_of("AdamW", corpus), corpus, tmp_path, resume=True)


def test_divergence_ends_the_run_with_the_reason(corpus: Corpus, tmp_path: Path) -> None:
    result = run(config_of("SGD", corpus, lr=1e30, warmup=0), corpus, tmp_path)
    assert "diverged with --lr 1e+30" in result.diverged
    assert "--lr 1e+29" in result.diverged
    assert 1 <= len(result.history) < STEPS


def test_nothing_global_is_changed(corpus: Corpus, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads(), dict(os.environ)
    handler = signal.getsignal(signal.SIGINT)
    run(config_of("Sophia", corpus), corpus, tmp_path)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (torch.get_default_dtype(), torch.get_num_threads(), dict(os.environ))
    assert signal.getsignal(signal.SIGINT) is handler


def test_sophia_gets_a_hessian_every_ten_steps(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimated: list[int] = []
    original = loop.Run._update_hessian
    monkeypatch.setattr(
        loop.Run, "_update_hessian", lambda self, n, text: (estimated.append(n), original(self, n, text))
    )
    result = run(config_of("Sophia", corpus), corpus, tmp_path)
    assert estimated == [1, 11]
    assert any(state["hessian"].abs().sum() > 0 for state in result.run.optimizer.state.values())


def test_adafactor_without_lr_has_no_schedule_and_with_one_has(corpus: Corpus, tmp_path: Path) -> None:
    own = run(config_of("Adafactor", corpus), corpus, tmp_path / "own")
    assert own.run.scheduler is None and {record["lr"] for record in own.history} == {None}
    given = run(config_of("Adafactor", corpus, lr=1e-2), corpus, tmp_path / "given")
    assert given.run.scheduler is not None and max(record["lr"] for record in given.history) == pytest.approx(1e-2)
