"""Hyperparameters out of range, misspelt or missing: refused by name in both faces, and nothing changes."""

from __future__ import annotations

import re

import pytest
import torch
from snapshots import assert_same, make_params, snapshot, take_steps
from variants import BASE, OPTIMIZERS

import rlx_gpu
from rlx_gpu import TABLE, optim

FACES = {
    "torch": lambda name, **hyper: getattr(optim, name)(make_params(), **hyper),
    "trait": lambda name, **hyper: getattr(rlx_gpu, name)(**hyper),
    "reference": lambda name, **hyper: getattr(rlx_gpu.reference, name)(**hyper),
}


NOT_NUMBERS = {
    "bool": [0.5, "yes", None],
    "choice": [0.5, "nothing", None, True],
    "sizes": [0.5, "3", (0,), (3, 1.5), ()],
    "coefficients": [0.5, "nothing", (), ((1.0, 2.0),), None],
}


def outside(hyper):
    """Values that a hyperparameter's declaration excludes."""
    if hyper.kind in NOT_NUMBERS:
        return NOT_NUMBERS[hyper.kind]
    low, high = hyper.interval[1:-1].split(", ")
    numbers = [float("nan"), float("inf") if high == "inf" else float(high) + 1.0]
    numbers += [float(low) - 1.0] if low != "-inf" else [float("-inf")]
    numbers += [float(low)] if hyper.interval[0] == "(" and low != "-inf" else []
    numbers += [float(high)] if hyper.interval[-1] == ")" and high != "inf" else []
    if hyper.kind == "pair":
        return [(x, hyper.default[1]) for x in numbers] + [(hyper.default[0], x) for x in numbers] + [0.9, (0.9,), None]
    if hyper.kind == "int":
        numbers = [int(low) - 1, 1.5, *([int(high) + 1] if high != "inf]" and high != "inf" else [])]
    return [*numbers, "0.1", True, torch.ones(2)] + ([] if hyper.optional else [None])


CASES = [
    pytest.param(name, hyper, value, id=f"{name}-{hyper.name}={value}".replace(" ", ""))
    for name in OPTIMIZERS
    for hyper in TABLE[name].hyperparameters
    for value in outside(hyper)
]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(("name", "hyper", "value"), CASES)
def test_out_of_range(name, hyper, value, face):
    """The message names the hyperparameter, its value and its range."""
    with pytest.raises(ValueError, match=rf"{name}.*{hyper.name}") as error:
        FACES[face](name, **{**BASE, hyper.name: value})
    words = {"bool": "True or False", "choice": f"one of {', '.join(hyper.choices)}"}
    assert words.get(hyper.kind, hyper.interval) in str(error.value)
    wrong = [x for x in value if repr(x).strip("()") in str(error.value)] if isinstance(value, tuple) else []
    assert wrong or repr(value) in str(error.value) or (isinstance(value, float) and str(value) in str(error.value))


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unknown(name, face):
    with pytest.raises(
        TypeError, match=rf"{name}: unknown hyperparameter 'weigth_decay' \(did you mean 'weight_decay'\?\)"
    ):
        FACES[face](name, **BASE, weigth_decay=0.1)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not TABLE[name].hyperparameters[0].optional])
def test_missing(name, face):
    with pytest.raises(TypeError, match=rf"{name}: missing required hyperparameter 'lr'"):
        FACES[face](name)


STORAGE = {"state_dtype": ["float16", "fp32", None], "rounding": ["up", None], "seed": [-1, 2**63, 0.5, True]}


@pytest.mark.parametrize("face", ["torch", "trait"])
@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, values in STORAGE.items() for value in values]
)
def test_storage(option, value, face):
    with pytest.raises(ValueError, match=rf"{option} must be .*got {re.escape(repr(value))}"):
        FACES[face]("AdamW", **BASE, **{option: value})


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("hyper", [{"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.5}], ids=str)
def test_nesterov_needs_momentum_without_dampening(hyper, face):
    with pytest.raises(ValueError, match=r"nesterov needs momentum > 0 and dampening = 0, got momentum="):
        FACES[face]("SGD", lr=0.1, nesterov=True, **hyper)


def test_a_group_with_a_bad_hyperparameter(path):
    """Refused when it is added, and when it is written to later; the optimizer stays as it was."""
    params = make_params()
    optimizer = optim.AdamW(params, **BASE)
    take_steps(optimizer, params, [0])
    before = snapshot(optimizer, params)
    for bad, error, message in (
        ({"lr": -1.0}, ValueError, r"param_groups\[1\]: AdamW: lr must be in \[0, inf\), got -1.0"),
        ({"weight_decy": 0.1}, TypeError, r"unknown key 'weight_decy' in a group; did you mean 'weight_decay'"),
        ({"rounding": "up"}, ValueError, r"param_groups\[1\]: rounding must be one of .*'up'"),
        ({"maximize": True}, ValueError, r"maximize=True"),
    ):
        with pytest.raises(error, match=message):
            optimizer.add_param_group({"params": make_params(seed=1), **bad})
        assert_same(snapshot(optimizer, params), before)
    optimizer.param_groups[0]["betas"] = (0.9, 1.5)
    with pytest.raises(ValueError, match=r"param_groups\[0\]: AdamW: betas\[1\] must be in \[0, 1\), got 1.5"):
        optimizer.step()
    optimizer.param_groups[0]["betas"] = (0.9, 0.999)
    assert_same(snapshot(optimizer, params), before)


def test_an_unknown_key_of_a_users_own_stays_in_the_group():
    """Schedulers and users keep their own entries in groups, as with torch."""
    optimizer = optim.AdamW([{"params": make_params(), "initial_lr": 0.1, "layer": 3}], **BASE)
    assert optimizer.param_groups[0]["layer"] == 3


@pytest.mark.parametrize("scale", [-1.0, float("nan"), "half", None, True])
def test_lr_scale(scale, path):
    parameter = torch.ones(3)
    optimizer = rlx_gpu.AdamW(**BASE, lr_scale=lambda name: 1.0 if name == "good" else scale)
    optimizer.step("good", (3,), torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"parameter 'bad': lr_scale must be"):
        optimizer.step("bad", (3,), parameter, torch.ones(3))
    assert torch.equal(parameter, torch.ones(3))
    with pytest.raises(ValueError, match=r"lr_scale must be a mapping, a callable or None, got 0.5"):
        rlx_gpu.AdamW(**BASE, lr_scale=0.5)
