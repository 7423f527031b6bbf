"""The example run with interpreted kernels in place of the NumPy reference; short, for they are slow."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_train import config_of, run, same_bits, stop_after

from rlx_gpu.train.data import load_corpus

pytestmark = [pytest.mark.usefixtures("path"), pytest.mark.parametrize("path", ["kernels"], indirect=True)]


def test_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    corpus = load_corpus()
    config = config_of("AdamW", corpus, steps=3, state_dtype="bfloat16")
    run(config, corpus, tmp_path / "whole")
    run(config, corpus, tmp_path / "parted", on_step=stop_after(1))
    run(config, corpus, tmp_path / "parted", resume=True)
    assert same_bits(tmp_path / "whole", tmp_path / "parted")
