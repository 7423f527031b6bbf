"""What makes a plan give way in the middle of a run: switches, modes and moves leave the numbers what they would be."""

from __future__ import annotations

import pytest
import torch
from snapshots import assert_same, make_params, snapshot, take_steps
from variants import BASE

import rlx_gpu
from rlx_gpu import optim
from rlx_gpu.reference.hyper import UNSET
from rlx_gpu.table import TABLE

FOUR = [0, 1, 2, 3]


def switches():
    """Every hyperparameter with a second value that may come in the middle of a run."""
    for algorithm in TABLE.values():
        for hyper in algorithm.hyperparameters:
            if hyper.optional and hyper.kind == "float" and hyper.default is not None:
                yield algorithm.name, hyper.name, None
            elif hyper.kind == "bool" and hyper.name not in ("amsgrad", "matrix"):
                yield algorithm.name, hyper.name, not hyper.default
            elif hyper.switch is not UNSET and hyper.kind in ("float", "steps"):
                yield algorithm.name, hyper.name, hyper.switch


@pytest.mark.parametrize(("name", "key", "value"), list(switches()))
def test_a_switch_in_the_middle_of_a_run(name, key, value, path):
    """As if every step had been planned anew."""
    runs, needed = [], {"momentum": 0.9} if (name, key) == ("SGD", "nesterov") else {}
    for forget in (False, True):
        params = make_params()
        optimizer = getattr(optim, name)(params, **BASE, **needed)
        for step in FOUR:
            if step == 2:
                optimizer.param_groups[0][key] = value
            if forget:
                optimizer._engine.forget()
            take_steps(optimizer, params, [step])
        runs.append(snapshot(optimizer, params))
    assert_same(*runs)


@pytest.mark.parametrize("name", ["AdamW", "NAdamW", "Adafactor", "SOAP"])
def test_steps_inside_and_outside_of_inference_mode(name, path):
    runs = []
    for inside in ((), (0, 2), (1, 3)):
        params = make_params()
        optimizer = getattr(optim, name)(params, **BASE)
        for step in FOUR:
            with torch.inference_mode(step in inside):
                take_steps(optimizer, params, [step])
        runs.append(snapshot(optimizer, params))
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


def test_an_estimate_before_the_loaded_parameter_is_seen(path):
    """Only the estimate changes: another optimizer's own step goes on from the same numbers."""
    value, grad = torch.ones(4, 6), torch.linspace(-1, 1, 24).view(4, 6)
    first = rlx_gpu.Sophia(**BASE)
    first.step("weight", value.shape, value, grad)
    first.end_iteration()
    for _ in range(2):
        loaded = rlx_gpu.Sophia(**BASE)
        loaded.load_state_dict(first.state_dict())
        for optimizer in (first, loaded):
            optimizer.update_hessian("weight", grad.square())
        one, other = first.state_dict(), loaded.state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one if "/" in key)


def test_names_of_another_number_of_parameters():
    named = [("a", torch.nn.Parameter(torch.ones(3))), ("b", torch.nn.Parameter(torch.ones(3)))]
    optimizer = optim.AdamW(named, **BASE)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["param_names"] = ["a"]
    with pytest.raises(ValueError, match=r"param_groups\[0\] names 1 of its 2 parameters"):
        optimizer.load_state_dict(saved)
