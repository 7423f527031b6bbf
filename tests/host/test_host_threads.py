"""The host's threads: torch's number of them, the same bits from any number, several callers, and forked processes."""

from __future__ import annotations

import threading

import pytest
import torch
from processes import python

import rlx_gpu
from rlx_gpu.engine.devices import stepped_on_host
from rlx_gpu.engine.host import threads

NAMES = ["AdamW", "LAMB", "Adafactor", "MARS"]
SIZES = ((300_000,), (700, 900), (17,), (1100, 130))


@pytest.fixture
def two_threads():
    """Torch set to two threads, where the machine has them."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def steps(name, count=3, seed=0):
    """Parameters after so many steps on the host."""
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in SIZES]
    with stepped_on_host():
        optimizer = getattr(rlx_gpu.optim, name)(params, **({} if name == "Adafactor" else {"lr": 1e-2}))
        for _ in range(count):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
    return params


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_threads_gives_the_same_bits(name, two_threads):
    assert threads.thread_count() == 2
    spread = steps(name)
    torch.set_num_threads(1)
    assert threads.thread_count() == 1
    assert all(map(torch.equal, spread, steps(name)))


@pytest.mark.parametrize("name", NAMES)
def test_two_callers_at_once(name, two_threads):
    """Each with an optimizer of its own, over tensors that are spread over threads as well."""
    wanted = [steps(name, seed=seed) for seed in range(2)]
    found = [None, None]
    with stepped_on_host():  # for both: it holds for the process

        def run(seed):
            found[seed] = steps(name, seed=seed)

        callers = [threading.Thread(target=run, args=(seed,)) for seed in range(2)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    for left, right in zip(wanted, found, strict=True):
        assert all(map(torch.equal, left, right))


IMPORTS = "import os, threading, torch, rlx_gpu\ntorch.set_num_threads(2)\n"
STEPS = """
made = [torch.nn.Parameter(torch.ones(400_000)) for _ in range(4)]  # here: torch itself has no threads after a fork
for param in made:
    param.grad = torch.full_like(param, 2.0)

def run(count=4):
    param = made.pop()
    optimizer = rlx_gpu.optim.SGD([param], lr=0.25, momentum=0.5)
    for _ in range(count):
        optimizer.step()
    return param.detach()
"""


def test_a_forked_process_is_told_that_it_has_no_threads():
    """Torch would wait for them forever, and GNU's OpenMP ends a process that uses Numba's."""
    code = (
        IMPORTS
        + STEPS
        + (
            "wanted = run()\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    from rlx_gpu.engine.host import thread_count\n"
            "    try:\n"
            "        run()\n"
            "    except RuntimeError as error:\n"
            "        print(error, flush=True)\n"
            "    torch.set_num_threads(1)\n"
            "    same = torch.equal(run(), wanted)\n"
            "    os._exit(0 if same and thread_count() == 1 else 3)\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        )
    )
    said, ended = python(code).stdout.splitlines()
    assert "forked from one whose threads had stepped an optimizer" in said and "torch.set_num_threads(1)" in said
    assert ended == "0"


def test_a_process_forked_before_has_threads_of_its_own():
    code = f"{IMPORTS}child = os.fork()\n{STEPS}" + (
        "if child == 0:\n"
        "    from rlx_gpu.engine.host import thread_count\n"
        "    run()\n"
        "    os._exit(thread_count())\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), bool(run()[0] < 0))\n"
    )
    assert python(code).stdout.split() == ["2", "True"]


def test_where_numba_has_nothing_but_its_workqueue():
    """It aborts a process in which two threads enter it."""
    code = (
        IMPORTS
        + STEPS
        + (
            "wanted, found = run(60), []  # three more of the parameters\n"
            "callers = [threading.Thread(target=lambda: found.append(run(60))) for _ in range(3)]\n"
            "for caller in callers: caller.start()\n"
            "for caller in callers: caller.join()\n"
            "import numba\n"
            "print(numba.threading_layer(), all(torch.equal(one, wanted) for one in found))\n"
        )
    )
    done = python(code, NUMBA_THREADING_LAYER="workqueue")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["workqueue", "True"]


def test_numbas_own_setting_stays():
    code = "import numba\nnumba.set_num_threads(1)\n" + IMPORTS + STEPS + "run()\nprint(numba.get_num_threads())\n"
    assert python(code).stdout.split() == ["1"]
    capped = IMPORTS + STEPS + "run()\nfrom rlx_gpu.engine.host import thread_count\nprint(thread_count())\n"
    assert python(capped, NUMBA_NUM_THREADS="1").stdout.split() == ["1"]
