"""What importing costs, what it needs, and what it leaves alone. Each test is a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from processes import user_environment

ROOT = Path(__file__).parents[2]
SECONDS = 3.0

BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""

REFERENCE_STEP = """
import numpy as np
import rlx_gpu
optimizer = rlx_gpu.reference.AdamW(lr=0.1)
param = np.ones(3)
optimizer.step("p", (3,), param, np.ones(3))
assert (param < 1).all()
assert rlx_gpu.TABLE["AdamW"].hyperparameters
"""

BOTH_FACES = """
import torch, rlx_gpu
for name in rlx_gpu.TABLE:
    param = torch.nn.Parameter(torch.ones(3, 4))
    param.grad = torch.ones(3, 4)
    twin = torch.ones(3, 4)
    optimizer, trait = (getattr(face, name) for face in (rlx_gpu.optim, rlx_gpu))
    optimizer, trait = optimizer([param], lr=0.1, weight_decay=0.1), trait(lr=0.1, weight_decay=0.1)
    for _ in range(2):  # a first step may set state only
        optimizer.step()
        trait.step("p", (3, 4), twin, torch.ones(3, 4))
        trait.end_iteration()
    assert (param < 1).all(), name
    assert torch.equal(param, twin), name
sophia = rlx_gpu.optim.Sophia([param], lr=0.1)
sophia.update_hessian([param], rlx_gpu.hessian.hutchinson(param.square().sum(), [param]))
sophia.step(grad_scale=rlx_gpu.global_grad_clip_scale([param.grad], 1.0))
"""

GLOBAL_STATE = """
import os, random, signal, sys, warnings, logging
import numpy as np, torch
def state():
    return (
        dict(os.environ), torch.get_default_dtype(), torch.get_rng_state().tolist(), torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), torch.is_grad_enabled(),
        torch.backends.cuda.matmul.allow_tf32, str(np.random.get_state()), np.geterr(), random.getstate(),
        warnings.filters[:], logging.root.level, logging.root.handlers[:], sys.getrecursionlimit(), os.getcwd(),
        torch.get_default_device(), signal.getsignal(signal.SIGINT),
    )
torch.optim.AdamW([torch.ones(1)])  # torch's own first optimizer loads SymPy, which adds a warning filter
before = state()
import rlx_gpu
import rlx_gpu.optim, rlx_gpu.hessian, rlx_gpu.reference, rlx_gpu.trait
params = [torch.nn.Parameter(torch.ones(3))]
optimizers = [getattr(rlx_gpu.optim, name)(params, lr=0.1) for name in rlx_gpu.TABLE]
traits = [getattr(rlx_gpu, name)(lr=0.1) for name in rlx_gpu.TABLE]
after = state()
assert before == after, [i for i, (a, b) in enumerate(zip(before, after)) if a != b]
params[0].grad = torch.ones(3)
for optimizer in optimizers:
    optimizer.step()
assert state() == before
"""


def python(code, *, interpret=False):
    """Runs code in a fresh interpreter at the root of the repository; its output."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=user_environment(**({"TRITON_INTERPRET": "1"} if interpret else {})),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocked(*names):
    return BLOCK.format(blocked=set(names))


def test_import_is_fast():
    """Measured inside the process, the interpreter's own start left out."""
    code = "import time; t = time.perf_counter(); import rlx_gpu; print(time.perf_counter() - t)"
    assert float(python(code)) < SECONDS


def test_import_loads_nothing_heavy():
    code = (
        "import sys, rlx_gpu\n"
        "print(sorted({'torch', 'triton', 'cupy', 'matplotlib', 'typer', 'rich'} & sys.modules.keys()))"
    )
    assert python(code).strip() == "[]"


def test_the_faces_load_in_time_too():
    """torch's own import is left out: it is not ours."""
    code = "import torch, time; t = time.perf_counter(); import rlx_gpu.optim; rlx_gpu.AdamW; "
    code += "print(time.perf_counter() - t)"
    assert float(python(code)) < SECONDS


@pytest.mark.parametrize("missing", [("torch", "triton", "cupy"), ("triton", "cupy")], ids="-".join)
def test_the_reference_needs_numpy_alone(missing):
    python(blocked(*missing) + REFERENCE_STEP)


def test_without_triton_both_faces_run_on_the_cpu():
    python(blocked("triton", "cupy") + BOTH_FACES)


def test_cpu_tensors_are_stepped_by_the_host_unless_interpreted():
    """The tensors' device chooses; on the CPU no kernel is launched, unless Triton interprets."""
    counted = (
        "import torch, rlx_gpu\n"
        "rlx_gpu.AdamW(lr=0.1).step('p', (3,), torch.ones(3), torch.ones(3))\n"
        "from rlx_gpu.engine import launch\nprint(launch.host_runs.total() > 0, launch.launches.total())"
    )
    assert python(counted).split()[-2:] == ["True", "0"]
    ran, launched = python(counted, interpret=True).split()[-2:]
    assert ran == "False" and int(launched) > 0


def test_without_torch_the_faces_say_so():
    code = blocked("torch", "triton") + (
        "import rlx_gpu\ntry:\n    rlx_gpu.AdamW\nexcept ModuleNotFoundError as error:\n    print(error)"
    )
    assert "torch" in python(code)


def test_nothing_global_changes():
    python(GLOBAL_STATE)


def test_everything_listed_can_be_had():
    python(
        "import rlx_gpu\n"
        "for name in rlx_gpu.__all__:\n    getattr(rlx_gpu, name)\n"
        "assert set(rlx_gpu.__all__) <= set(dir(rlx_gpu))\n"
        "assert not hasattr(rlx_gpu, 'Nonsense') and not hasattr(rlx_gpu.optim, 'Nonsense')"
    )
