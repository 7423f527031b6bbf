"""Compilation for the host: how long it takes, what the next process finds, and what is refused by name."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from processes import python, user_environment

import rlx_gpu
from rlx_gpu.engine.devices import stepped_on_host
from rlx_gpu.engine.host import rules
from rlx_gpu.kernels.rules import lion
from rlx_gpu.kernels.spec import Pass, RuleSpec
from rlx_gpu.table import TABLE

STEP = """
import time, torch, rlx_gpu
param = torch.nn.Parameter(torch.ones(9, 5))
param.grad = torch.ones(9, 5)
import rlx_gpu.engine.host
from rlx_gpu.engine.host import build
optimizer = rlx_gpu.optim.{name}([param], lr=0.1)
start = time.process_time()
optimizer.step()
print(time.process_time() - start, len(build._alive), sum(one.cache_hits for one in build._alive))
"""


def first_step(name, **environment):
    """Seconds of the first step of a process; how many functions it then had, and how many of them it had loaded."""
    done = python(STEP.format(name=name), **environment)
    assert done.returncode == 0, done.stderr
    seconds, functions, loaded = done.stdout.split()
    return float(seconds), int(functions), int(loaded)


def test_the_next_process_loads_what_this_one_has_compiled(tmp_path):
    _, functions, loaded = first_step("AdamW", NUMBA_CACHE_DIR=str(tmp_path))
    assert functions >= 4 and loaded == 0
    assert any((tmp_path / "rlx-gpu").glob("adamw_rule-*.py"))
    _, functions, loaded = first_step("AdamW", NUMBA_CACHE_DIR=str(tmp_path))
    assert functions == loaded >= 4
    _, functions, loaded = first_step(
        "Lion", NUMBA_CACHE_DIR=str(tmp_path)
    )  # the programs are there, its rule and its row are not
    assert functions - loaded == 2


BOTH = """
import sys, torch, rlx_gpu
for name, dtype in [("Adam", torch.float32), ("AdamW", torch.float32), ("AdamW", torch.float64)]:
    if sys.argv[1] in ("all", f"{name} {dtype}"):
        param = torch.nn.Parameter(torch.ones(5, dtype=dtype))
        param.grad = torch.arange(5, dtype=dtype)
        optimizer = getattr(rlx_gpu.optim, name)([param], lr=0.1, weight_decay=0.5, amsgrad=True)
        optimizer.step()
        print(name, dtype, param.tolist())
"""


def test_what_processes_have_compiled_apart_is_told_apart_by_the_one_that_loads_it(tmp_path):
    """The compiler numbers functions of one name from nought in every process."""

    def run(which, folder):
        command = [sys.executable, "-c", BOTH, which]
        environment = user_environment(NUMBA_CACHE_DIR=str(tmp_path / folder))
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.splitlines()

    kinds = ["Adam torch.float32", "AdamW torch.float32", "AdamW torch.float64"]
    alone = [line for kind in kinds for line in run(kind, "shared")]
    assert len(set(alone)) == 3
    assert run("all", "shared") == alone == run("all", "fresh")


def test_files_that_were_damaged_are_no_obstacle(tmp_path):
    first_step("Lion", NUMBA_CACHE_DIR=str(tmp_path))
    kept = [file for file in tmp_path.rglob("*.nb?")]
    assert kept
    for file in kept:
        file.write_bytes(file.read_bytes()[:40])
    _, functions, loaded = first_step("Lion", NUMBA_CACHE_DIR=str(tmp_path))
    assert functions >= 4 and loaded == 0


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for variable in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        done = python(STEP.format(name="Lion"), **{variable: str(file / "folder")})
        assert done.returncode == 0, done.stderr


@triton.jit
def with_minimum_rule(param, grad, state, hyper):
    """What machines do not agree on."""
    (exp_avg,) = state
    lr, weight_decay, beta1, gain1, beta2, gain2 = hyper  # noqa: RUF059  (a rule unpacks all of its row)
    return param - lr * tl.minimum(grad, exp_avg), state


@triton.jit
def with_an_integer_rule(param, grad, state, hyper):
    """A literal that makes a float64 of a float32."""
    lr, weight_decay, beta1, gain1, beta2, gain2 = hyper  # noqa: RUF059  (a rule unpacks all of its row)
    return param - lr * grad * 2, state


@pytest.mark.parametrize(
    ("rule", "message"),
    [(with_minimum_rule, "minimum"), (with_an_integer_rule, "a literal without a point is an integer")],
    ids=["minimum", "integer"],
)
def test_a_rule_that_the_host_does_not_take_is_named(rule, message, monkeypatch):
    plain = lion.SPECS[0]
    spec = RuleSpec("wrong", plain.slots, (Pass(rule, ("param",)),), plain.row)
    monkeypatch.setattr(TABLE["Lion"].rules, "SPECS", (spec,))
    param = torch.nn.Parameter(torch.ones(4))
    param.grad = torch.ones(4)
    with stepped_on_host(), pytest.raises(Exception, match=message) as caught:
        rlx_gpu.optim.Lion([param], lr=0.1).step()
    assert f"while compiling {rule.fn.__name__} for the CPU" in caught.value.__notes__
    assert param.tolist() == [1.0] * 4


def test_a_row_of_another_length_is_refused(monkeypatch):
    plain = lion.SPECS[0]
    row = dataclasses.replace(plain.row, scalars=TABLE["SGD"].rules.plain_scalars)
    monkeypatch.setattr(TABLE["Lion"].rules, "SPECS", (dataclasses.replace(plain, row=row),))
    param = torch.nn.Parameter(torch.ones(4))
    param.grad = torch.ones(4)
    with stepped_on_host(), pytest.raises(Exception, match=r".") as caught:
        rlx_gpu.optim.Lion([param], lr=0.1).step()
    assert any("'lion'" in note for note in caught.value.__notes__)


def test_a_change_anywhere_in_a_rule_is_another_rule():
    """What is kept on disk is told apart by the code of a rule and of all that it calls."""
    known = {
        rules.fingerprint(one.rule)
        for algorithm in TABLE.values()
        for spec in algorithm.rules.SPECS
        for one in getattr(spec, "passes", ())
    }
    assert len(known) >= 19
    assert rules.fingerprint(with_minimum_rule) not in known
    before = rules.fingerprint(lion.lion_rule)
    old = lion.lion_rule.fn.__globals__["moving_average"]
    lion.lion_rule.fn.__globals__["moving_average"] = with_minimum_rule
    try:
        assert rules.fingerprint(lion.lion_rule) != before
    finally:
        lion.lion_rule.fn.__globals__["moving_average"] = old
    assert rules.fingerprint(lion.lion_rule) == before


@pytest.mark.long
@pytest.mark.parametrize("name", TABLE)
def test_a_rule_takes_at_most_two_seconds_to_compile(name, tmp_path):
    """At its first step on a machine, on which the programs that all rules share have been compiled."""
    first_step(name, XDG_CACHE_HOME=str(tmp_path))
    for file in (tmp_path / "rlx-gpu" / "__pycache__").iterdir():
        if not file.name.startswith("programs-"):
            file.unlink()
    seconds, functions, loaded = first_step(name, XDG_CACHE_HOME=str(tmp_path))
    assert 0 < loaded < functions and seconds < 2
