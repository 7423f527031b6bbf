"""What tests share: interpreted kernels, one thread, fixed seeds, and a choice of the path that steps CPU tensors.

`make test` interprets the kernels on the CPU. The GPU lane (RLX_GPU_LANE=1, `make test-gpu`) compiles them.
"""

# ruff: noqa: E402  (Triton's library, too, is interpreted only if the variable is set before its import)
from __future__ import annotations

import os
from contextlib import nullcontext

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


@pytest.fixture(params=["kernels", "host"])
def path(request):
    """What steps CPU tensors: the interpreted kernels, or the host's driver as wherever Triton does not interpret.

    A test of kernels must step at least once, and any fails if another path ran than the one it names.
    """
    from rlx_gpu.engine import launch
    from rlx_gpu.engine.devices import stepped_on_host

    before = launch.launches.total(), launch.host_runs.total()
    with stepped_on_host() if request.param == "host" else nullcontext():
        yield request.param
    launched, ran = launch.launches.total() - before[0], launch.host_runs.total() - before[1]
    right = launched == 0 if request.param == "host" else launched > 0 == ran
    assert right, f"{launched} launches and {ran} runs on the host, on the {request.param} path"
