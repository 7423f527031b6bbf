"""What tests share: interpreted kernels, one thread, fixed seeds, and a choice of the path that steps CPU tensors.

`make test` interprets the kernels on the CPU. The GPU lane (RLX_GPU_LANE=1, `make test-gpu`) compiles them.
"""

# ruff: noqa: E402  (Triton's library, too, is interpreted only if the variable is set before its import)
from __future__ import annotations

import os

GPU_LANE = os.environ.get("RLX_GPU_LANE") == "1"
if not GPU_LANE:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors; two threads only wait for each other
if not GPU_LANE:
    from rlx_gpu.engine import interpreter

    interpreter.repair()


def pytest_configure(config):
    """Interpreted, lanes beyond a tensor's end divide zero by zero before the mask drops them."""
    config.addinivalue_line("filterwarnings", r"ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.fixture(scope="session", autouse=True)
def documented_classes():
    """Makes every class before a test puts a wrong rule in the right one's place: a class documents its rule, once."""
    import rlx_gpu

    for face in (rlx_gpu, rlx_gpu.optim, rlx_gpu.reference):
        for name in rlx_gpu.TABLE:
            getattr(face, name)


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same random numbers in every run and order of tests."""
    torch.manual_seed(0)


@pytest.fixture(params=["kernels", "reference"])
def path(request, monkeypatch):
    """What steps CPU tensors: the interpreted kernels, or the NumPy reference as on a machine without Triton.

    The test must step at least once, and fails if another path ran than the one it names.
    """
    from rlx_gpu.engine import devices as dispatch
    from rlx_gpu.engine import launch

    if request.param == "reference":
        monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    before = launch.launches.total()
    yield request.param
    launched = launch.launches.total() - before
    assert (launched > 0) == (request.param == "kernels"), f"{launched} launches on the {request.param} path"
