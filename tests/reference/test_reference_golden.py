"""The references against trajectories computed by public packages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlx_gpu.reference import algorithms
from rlx_gpu.reference.hyper import resolve

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "trajectories.npz")
CASES = json.loads(str(GOLDEN["index"]))
MATRIX_OPTIMIZERS = {"Muon"}  # need a matrix routine and have no reference here yet
ELEMENTWISE = [case for case in CASES if case["optimizer"] not in MATRIX_OPTIMIZERS]


def case_id(case):
    """The case in words: optimizer, shape, and the hyperparameters that choose a variant of it."""
    variants = ("momentum", "nesterov", "amsgrad", "nus", "momentum_decay", "gamma")
    variant = [f"{name}={case['hyper'][name]}" for name in variants if name in case["hyper"]]
    return "-".join([case["key"], "x".join(map(str, case["shape"])), *variant]).replace(" ", "")


def worst_error(case, algorithm, given):
    """The largest difference from the golden parameters over all steps."""
    hyper = resolve(algorithm.HYPERPARAMETERS, given, algorithm.NAME)
    param, state = GOLDEN[f"{case['key']}/p0"], algorithm.init_state(tuple(case["shape"]), **hyper)
    error = 0.0
    trajectory = zip(GOLDEN[f"{case['key']}/grads"], GOLDEN[f"{case['key']}/params"], strict=True)
    for step, (grad, expected) in enumerate(trajectory, start=1):
        param, state = algorithm.update(param, grad, state, step, **hyper)
        error = max(error, np.abs(param - expected).max())
    return error


def test_golden_covers_every_reference_but_sophia():
    """Sophia has no golden trajectory, as no package has its form; its formula is tested by hand."""
    assert len(CASES) == 72
    assert len(ELEMENTWISE) == 68
    assert {case["optimizer"] for case in ELEMENTWISE} == set(algorithms()) - {"Sophia"}


@pytest.mark.parametrize("case", ELEMENTWISE, ids=case_id)
def test_reproduces_golden(case):
    assert worst_error(case, algorithms()[case["optimizer"]], case["hyper"]) <= case["atol"]


@pytest.mark.parametrize("case", [case for case in ELEMENTWISE if case["hyper"].get("lr")], ids=case_id)
def test_no_other_optimizer_reproduces_it(case):
    """The negative control: a check that any optimizer passes checks nothing."""
    for other in algorithms().values():
        shared = {"lr", "betas", "weight_decay"} & {hyper.name for hyper in other.HYPERPARAMETERS} & {*case["hyper"]}
        if case["optimizer"] != other.NAME:
            error = worst_error(case, other, {name: case["hyper"][name] for name in shared})
            assert error > 1000 * case["atol"], other.NAME
