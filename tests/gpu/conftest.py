"""The GPU lane: every test of this folder needs a CUDA device and compiled kernels, and is skipped without them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests `gpu`, and skip them where they cannot run."""
    if not torch.cuda.is_available():
        reason = "needs a CUDA device"
    elif os.environ.get("RLX_GPU_LANE") != "1":
        reason = "runs in the GPU lane: make test-gpu"
    else:
        reason = ""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
