"""Where Triton does not exist (macOS, Windows, images for CPUs): both faces, parity and training on the host."""

from __future__ import annotations

import json

import pytest
from processes import python

WITHOUT = "import sys\nsys.modules['triton'] = None\n"
EVERY_OPTIMIZER = """
import numpy as np, torch, rlx_gpu

for name in rlx_gpu.TABLE:
    options = {} if name == "Adafactor" else {"lr": 0.01}
    shapes = [(6, 5), (7,)]
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.arange(1.0, param.numel() + 1).reshape(param.shape)
    groups = list(zip("ab", params)) if name == "Muon" else params
    optimizer = getattr(rlx_gpu.optim, name)(groups, **options)
    optimizer.step()
    trait = getattr(rlx_gpu, name)(**options)
    arrays = [np.ones(shape, np.float32) for shape in shapes]
    trait.step_batch((key, a.shape, a, p.grad.numpy().copy()) for key, a, p in zip("ab", arrays, params))
    assert all(np.array_equal(a, p.detach().numpy()) and (a != 1).all() for a, p in zip(arrays, params)), name
    print(name)
print(rlx_gpu.l2_norm(torch.full((4,), 3.0)).item(), rlx_gpu.newton_schulz(torch.eye(3)).shape[0])
"""


def command(*arguments: str) -> str:
    return f"{WITHOUT}sys.argv = {['rlx-gpu', *arguments]!r}\nfrom rlx_gpu.cli import main\nmain()\n"


def test_every_optimizer_steps_through_both_faces() -> None:
    done = python(WITHOUT + EVERY_OPTIMIZER)
    assert done.returncode == 0, done.stderr
    *names, last = done.stdout.splitlines()
    assert len(names) == 14 and last == "6.0 3"


def test_parity_runs_on_the_cpu() -> None:
    done = python(command("parity", "--optimizer", "lamb", "--optimizer", "muon", "--shapes", "9,5x4", "--json"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] and list(report["devices"]) == ["cpu"]


@pytest.mark.parametrize("device", ["interpreted"])
def test_kernels_are_said_to_need_it(device: str) -> None:
    done = python(command("parity", "--device", device))
    assert done.returncode == 1 and "Triton is not installed" in done.stderr and "pip install triton" in done.stderr


def test_training(tmp_path) -> None:
    small = ["--steps", "3", "--width", "8", "--layers", "1", "--context", "8", "--batch-size", "2", "--device", "cpu"]
    done = python(command("train", "--optimizer", "soap", *small, "--out", str(tmp_path / "run")))
    assert done.returncode == 0, done.stderr
    assert "step 3/3" in done.stdout


def test_a_kernel_cannot_be_launched() -> None:
    code = WITHOUT + (
        "from rlx_gpu.kernels.elementwise import fused_step_kernel\n"
        "try:\n    fused_step_kernel[(1,)]\nexcept ImportError as error:\n    print(error)\n"
    )
    assert "fused_step_kernel is a Triton kernel; tensors on a GPU need Triton" in python(code).stdout
