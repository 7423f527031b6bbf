"""What a type checker says of code that uses the package, and of the modules that a stub stands before."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import user_environment

from rlx_gpu.bench import stubs
from rlx_gpu.table import TABLE

pytestmark = pytest.mark.xdist_group(__name__)  # what the module prepares is made once
ROOT = Path(__file__).parents[1]
EXAMPLE = """\
from typing import assert_type
import torch
import rlx_gpu
from rlx_gpu import optim

model = torch.nn.Linear(3, 3)
adamw = rlx_gpu.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
assert_type(adamw, optim.AdamW)
drop_in: torch.optim.Optimizer = adamw
adamw.step(grad_scale=rlx_gpu.global_grad_clip_scale([torch.ones(3)], 1.0))
adamw.load_state_dict(adamw.state_dict())
assert_type(rlx_gpu.state_bytes(adamw), int)
optim.SGD(model.named_parameters(), torch.tensor(0.1), momentum=0.9, nesterov=True, maximize=False)
optim.Adafactor([{"params": model.parameters()}], lr=None)
optim.AdamW(model.parameters(), 3e-4, (0.9, 0.95), 1e-8, 0.1)
optim.Muon(model, lr=0.02, ns_coefficients=[(3.4445, -4.775, 2.0315)], split_sizes=(1, 2), ndim_policy="flatten")
optim.SOAP(rlx_gpu.split_parameters(model), lr=3e-3, state_dtype="bfloat16", rounding="stochastic")
sophia = optim.Sophia(model.parameters(), lr=0.1)
sophia.update_hessian([model.weight], rlx_gpu.hessian.hutchinson(model.weight.sum(), [model.weight]))

trait = rlx_gpu.Muon(lr=0.02, lr_scale={"head": 0.1}, use_fallback=["head"], device="cpu")
assert_type(trait, rlx_gpu.Muon)
trait.step("p", (3,), torch.ones(3), torch.ones(3))
trait.step_batch([("q", (3,), torch.ones(3), torch.ones(3))], grad_scale=0.5)
trait.end_iteration()
trait.set_lr(0.1)
trait.load_state_dict(trait.state_dict())
assert_type(trait.hyper["lr"], object)  # error: assert-type
print(rlx_gpu.__version__, *rlx_gpu.TABLE, rlx_gpu.reference.AdamW, rlx_gpu.newton_schulz, rlx_gpu.l2_norm)

rlx_gpu.AdamV(lr=0.1)  # error: attr-defined
optim.AdamV(model.parameters(), lr=0.1)  # error: attr-defined
rlx_gpu.AdamW(lr=0.1, weigth_decay=0.1)  # error: call-arg
optim.AdamW(model.parameters(), lr=0.1, weigth_decay=0.1)  # error: call-arg
rlx_gpu.AdamW(0.1, (0.9, 0.95))  # error: call-arg
rlx_gpu.AdamW(lr=None)  # error: arg-type
optim.AdamW(model.parameters(), lr=0.1, betas=0.9)  # error: arg-type
optim.AdamW(model.parameters(), lr=0.1, maximize=True)  # error: arg-type
optim.AdamW(model, lr=0.1)  # error: arg-type
optim.Muon(model, lr=0.1, adjust_lr_fn="orignal")  # error: arg-type
optim.SOAP(model.parameters(), lr=0.1, state_dtype="float8")  # error: arg-type
optim.Lion(model.parameters(), lr=0.1).update_hessian([], [])  # error: attr-defined
rlx_gpu.Lion(lr=0.1, use_fallback=["head"])  # error: call-arg
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy remembers of torch from one run to the next."""
    return tmp_path_factory.mktemp("mypy")


def mypy(cache: Path, *arguments: str | Path) -> str:
    command = [sys.executable, "-m", "mypy", "--cache-dir", cache, "--hide-error-context", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=user_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    return done.stdout


def found(path: Path, report: str) -> dict[int, str]:
    """line -> code of its error, in one file."""
    errors = re.findall(rf"^{re.escape(str(path))}:(\d+): error: .*\[(.+)\]$", report, re.MULTILINE)
    return {int(line): code for line, code in errors}


def test_right_uses_pass_and_wrong_ones_are_errors(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(EXAMPLE, encoding="utf-8")
    expected = {
        number: line.partition("# error: ")[2]
        for number, line in enumerate(EXAMPLE.splitlines(), 1)
        if "# error: " in line
    }
    report = mypy(cache, "--follow-imports", "silent", path)
    assert found(path, report) == expected, report


def test_every_optimizer_has_its_class_in_both_faces(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "classes.py"
    lines = ["import torch, rlx_gpu", "params = [torch.ones(1)]"]
    lines += [line for name in TABLE for line in (f"rlx_gpu.{name}(lr=0.1)", f"rlx_gpu.optim.{name}(params, lr=0.1)")]
    lines += [f"reveal_type(rlx_gpu.{name})" for name in TABLE]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = mypy(cache, "--follow-imports", "silent", path)
    assert found(path, report) == {}, report
    assert re.findall(r'-> rlx_gpu\.(\w+)"', report) == list(TABLE), report


def test_the_modules_behind_the_stubs_are_checked_too(cache: Path) -> None:
    """In a folder mypy reads a stub instead of its module."""
    modules = [stubs.path(face).with_suffix(".py") for face in stubs.FACES]
    report = mypy(cache, *modules)
    assert report.startswith("Success"), report
