"""Hyperparameters out of range, misspelt or missing: refused by name in both faces, and nothing changes."""

from __future__ import annotations

import re

import pytest
import torch
from refused import refused_values
from snapshots import assert_same, make_params, snapshot, take_steps
from variants import BASE, OPTIMIZERS

import rlx_gpu
from rlx_gpu import TABLE, optim

FACES = {
    "torch": lambda name, **hyper: getattr(optim, name)(make_params(), **hyper),
    "trait": lambda name, **hyper: getattr(rlx_gpu, name)(**hyper),
    "reference": lambda name, **hyper: getattr(rlx_gpu.reference, name)(**hyper),
}


@pytest.mark.parametrize("face", ["torch", "trait"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_out_of_range(name, face):
    """The message names the hyperparameter and the value; tests/reference holds it to the range."""
    for hyper in TABLE[name].hyperparameters:
        tensors = [(torch.ones(2), torch.ones(2))] if hyper.kind == "float" else []
        for value, culprit in [*refused_values(hyper), *tensors]:
            with pytest.raises(ValueError, match=rf"{name}.*{hyper.name}") as error:
                FACES[face](name, **{**BASE, hyper.name: value})
            assert str(error.value).endswith(f"got {culprit!r}")


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unknown(name, face):
    with pytest.raises(
        TypeError, match=rf"{name}: unknown hyperparameter 'weigth_decay' \(did you mean 'weight_decay'\?\)"
    ):
        FACES[face](name, **BASE, weigth_decay=0.1)


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
