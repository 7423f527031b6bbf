"""The GPU lane: `make test-gpu` compiles the kernels and runs these tests on CUDA.

Tests that take `device` also run on the CPU, interpreted, so that their bodies are exercised without a GPU. What can
only be seen on a GPU is marked `gpu` and skipped without one: the one skip of the suite.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
import torch

LANE = os.environ.get("RLX_GPU_LANE") == "1" and torch.cuda.is_available()


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        cuda = pytest.param("cuda", marks=pytest.mark.gpu)
        metafunc.parametrize("device", [cuda] if LANE else ["cpu", cuda])


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not LANE:
        pytest.skip("needs a CUDA device and RLX_GPU_LANE=1, as make test-gpu sets it")


@pytest.fixture
def cupy():
    """CuPy, an extra."""
    try:
        import cupy
    except ImportError:
        pytest.skip("needs CuPy: pip install rlx-gpu[cupy]")
    return cupy


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Every test here must have launched kernels, unless it says that cuBLAS may do."""
    from rlx_gpu.engine import launch

    before = launch.launches.total()
    result = yield
    if not item.get_closest_marker("cublas"):
        assert launch.launches.total() > before, "no kernel was launched"
    return result


@pytest.fixture
def no_sync():
    """Turns every synchronisation inside `with no_sync():` into an error; on the CPU there are none."""

    @contextmanager
    def guard():
        if not LANE:
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return guard
