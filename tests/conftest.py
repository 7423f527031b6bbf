"""What tests share: interpreted kernels, one thread, fixed seeds, and a choice of the path that steps CPU tensors.

`make test` interprets the kernels on the CPU. The GPU lane (RLX_GPU_LANE=1, `make test-gpu`) compiles them.
"""

# ruff: noqa: E402  (Triton's library, too, is interpreted only if the variable is set before its import)
from __future__ import annotations

import functools
import os
import sys

GPU_LANE = os.environ.get("RLX_GPU_LANE") == "1"
if not GPU_LANE:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

torch.set_num_threads(1)  # tiny tensors; two threads only wait for each other


@functools.cache
def patch_library(function):
    """Makes `triton.language.core` run on NumPy, for the functions of Triton's own library that look into it."""
    if any(value is tl.core for value in function.__globals__.values()):
        interpreter._patch_lang(function)


def call_device_function(self, *args, **kwargs):
    """Calls a JIT function from a JIT function, without patching `triton.language` once more.

    The enclosing launch has patched it; repeating that for every call is more than half of an interpreted step.
    """
    patch_library(self.fn)
    return self.rewrite()(*args, **kwargs)


convert = interpreter.InterpreterBuilder.cast_impl


def convert_to_nearest(self, source, wanted):
    """Converts between number formats, float32 and bfloat16 as every GPU does it.

    The interpreter cuts bits off where a GPU rounds to nearest even, and loses subnormals on the way back.
    """
    formats = source.dtype.scalar, wanted.scalar
    if formats == (tl.float32, tl.bfloat16):
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(rounded.reshape(source.data.shape), tl.bfloat16)
    if formats == (tl.bfloat16, tl.float32):
        widened = np.ascontiguousarray(source.data).astype(np.uint32) << 16
        return interpreter.TensorHandle(widened.view(np.float32).reshape(source.data.shape), tl.float32)
    return convert(self, source, wanted)


if not GPU_LANE:
    interpreter.InterpretedFunction.__call__ = call_device_function
    interpreter.InterpreterBuilder.cast_impl = convert_to_nearest


def pytest_configure(config):
    """Interpreted, lanes beyond a tensor's end divide zero by zero before the mask drops them."""
    config.addinivalue_line("filterwarnings", r"ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same random numbers in every run and order of tests."""
    torch.manual_seed(0)


@pytest.fixture(params=["kernels", "reference"])
def path(request, monkeypatch):
    """What steps CPU tensors: the interpreted kernels, or the NumPy reference as on a machine without Triton.

    The test must step at least once, and fails if another path ran than the one it names.
    """
    from rlx_gpu import checks, launch, norms, optim, optimizer, plan  # noqa: F401  (so that all its importers are loaded)

    original = checks.runs_kernels
    if request.param == "reference":
        for module in [module for name, module in sys.modules.items() if name.startswith("rlx_gpu")]:
            if getattr(module, "runs_kernels", None) is original:
                monkeypatch.setattr(module, "runs_kernels", lambda device: False)
    before = launch.launches.total()
    yield request.param
    launched = launch.launches.total() - before
    assert (launched > 0) == (request.param == "kernels"), f"{launched} launches on the {request.param} path"
