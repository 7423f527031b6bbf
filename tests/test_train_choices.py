"""What a training run is made of: its choices, its text, its schedule and its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlx_gpu.train.config import ModelConfig, TrainConfig, TrainError, optimizer_names
from rlx_gpu.train.data import Corpus, batch, load_corpus
from rlx_gpu.train.loop import learning_rate_share, train

pytestmark = pytest.mark.xdist_group(__name__)  # what the module prepares is made once
TINY = ModelConfig(context=8, width=16, layers=1)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus()


def test_schedule_warms_up_then_falls_to_a_tenth() -> None:
    shares = [learning_rate_share(step, 100, 10) for step in range(100)]
    assert shares[0] == pytest.approx(1 / 11) and shares[10] == 1.0
    assert shares[:11] == sorted(shares[:11]) and shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[-1] == pytest.approx(0.1, abs=1e-3)


def test_text_is_split_by_file_and_batches_follow_from_seed_and_step(corpus: Corpus) -> None:
    assert len(corpus.train) > 10 * len(corpus.validation) > 500_000
    again = load_corpus()
    assert again.digest == corpus.digest
    first = batch(corpus.train, 0, 1, 4, 16)
    assert first.shape == (4, 17) and first.dtype == torch.int64
    assert torch.equal(first, batch(again.train, 0, 1, 4, 16))
    assert not torch.equal(first, batch(corpus.train, 0, 2, 4, 16))
    assert not torch.equal(first, batch(corpus.train, 1, 1, 4, 16))


def test_too_little_text_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("x = 1\n")
    with pytest.raises(TrainError, match=f"{tmp_path} has 1 Python source files"):
        load_corpus(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    with pytest.raises(TrainError, match=r"gone\.py cannot be read \(No such file"):
        load_corpus(tmp_path)


def test_a_context_longer_than_the_text_is_refused_before_anything_is_written(corpus: Corpus, tmp_path: Path) -> None:
    longest = len(corpus.validation) - 1
    corpus.require_context(longest)
    with pytest.raises(TrainError, match=f"--context must be below {longest + 1}, "):
        config = TrainConfig("AdamW", model=replace(TINY, context=longest + 1), data=corpus.digest)
        train(config, corpus, tmp_path / "new", device=torch.device("cpu"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("--steps must be at least 1, not 0", lambda: TrainConfig("AdamW", steps=0)),
        ("--batch-size must be at least 1, not 0", lambda: TrainConfig("AdamW", batch_size=0)),
        ("--warmup must be at least 0, not -1", lambda: TrainConfig("AdamW", warmup=-1)),
        ("--seed must be at least 0, not -1", lambda: TrainConfig("AdamW", seed=-1)),
        ("--seed must be at most 4294967295, not 4294967296", lambda: TrainConfig("AdamW", seed=2**32)),
        ("--width must be a multiple", lambda: ModelConfig(width=10)),
        ("--width must be at least 1", lambda: ModelConfig(width=0)),
        ("--context must be at least 2", lambda: ModelConfig(context=1)),
        ("--layers must be at least 1", lambda: ModelConfig(layers=0)),
        ("no optimizer 'adamx'; choose from all, SGD", lambda: optimizer_names("adamx")),
    ],
)
def test_choices_out_of_range_are_named(message: str, make: Callable[[], object]) -> None:
    with pytest.raises(TrainError, match=message):
        make()


def test_attention_sees_only_the_past() -> None:
    from rlx_gpu.train.model import ByteGPT

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ByteGPT(TINY)
    text = torch.arange(8)[None]
    changed = text.clone()
    changed[0, 5] = 200
    before, after = model(text), model(changed)
    assert torch.equal(before[0, :5], after[0, :5]) and not torch.equal(before[0, 5], after[0, 5])
