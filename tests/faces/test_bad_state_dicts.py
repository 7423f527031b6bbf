"""State dicts that do not fit the torch face: refused by name, and neither parameters nor state have changed."""

from __future__ import annotations

import copy

import pytest
import torch
from snapshots import assert_same, make_params, snapshot, take_steps
from variants import BASE, OPTIMIZERS, VARIANTS

from rlx_gpu import optim

NAMES = ("weight", "bias", "scale")


def stepped(variant="AdamW"):
    name, hyper = VARIANTS[variant]
    named = list(zip(NAMES, make_params(), strict=True))
    params = [param for _, param in named]
    optimizer = getattr(optim, name)(named, **hyper)
    take_steps(optimizer, params, range(2))
    return optimizer, params


def refused(optimizer, params, saved, message):
    before = snapshot(optimizer, params)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert_same(snapshot(optimizer, params), before)


def without(mapping, key):
    return {k: v for k, v in mapping.items() if k != key}


def spoiled(saved, fault):
    """A copy of a state dict with one fault."""
    saved = copy.deepcopy(saved)
    state, groups = saved["state"], saved["param_groups"]
    if fault in ("state", "param_groups"):
        del saved[fault]
    elif fault == "slot missing":
        del state[1]["exp_avg_sq"]
    elif fault == "step missing":
        del state[1]["step"]
    elif fault == "slot unknown":
        state[1]["momentum_buffer"] = torch.zeros(5)
    elif fault == "slot shape":
        state[1]["exp_avg"] = torch.zeros(6)
    elif fault == "slot transposed":
        state[0]["exp_avg"] = torch.zeros(6, 4)
    elif fault == "slot text":
        state[1]["exp_avg"] = "zeros"
    elif fault == "step negative":
        state[1]["step"] = torch.tensor(-1.0)
    elif fault == "step fraction":
        state[1]["step"] = torch.tensor(1.5)
    elif fault == "step NaN":
        state[1]["step"] = torch.tensor(float("nan"))
    elif fault == "step vector":
        state[1]["step"] = torch.ones(2)
    elif fault == "more groups":
        groups.append(copy.deepcopy(groups[0]))
    elif fault == "fewer params":
        groups[0]["params"].pop()
    elif fault == "owner":
        groups[0]["optimizer"] = "Lion"
    elif fault == "lr":
        groups[0]["lr"] = -1.0
    elif fault == "state dtype":
        groups[0]["state_dtype"] = "int4"
    elif fault == "maximize":
        groups[0]["maximize"] = True
    return saved


FAULTS = {
    "state": r"state dict: missing 'state'",
    "param_groups": r"state dict: missing 'param_groups'",
    "slot missing": r"parameter 'bias' lacks slot 'exp_avg_sq'; it has \['exp_avg', 'step'\]",
    "step missing": r"parameter 'bias' lacks slot 'step'",
    "slot unknown": r"parameter 'bias' has slot 'momentum_buffer', AdamW keeps step, exp_avg, exp_avg_sq",
    "slot shape": r"'exp_avg/bias' has shape \(6,\), expected \(5,\)",
    "slot transposed": r"'exp_avg/weight' has shape \(6, 4\), expected \(4, 6\)",
    "slot text": r"'exp_avg/bias' must be an array of numbers, got str",
    "step negative": r"'step/bias' must be one whole number from 0, got .*-1",
    "step fraction": r"'step/bias' must be one whole number from 0, got .*1.5",
    "step NaN": r"'step/bias' must be one whole number from 0, got .*nan",
    "step vector": r"'step/bias' must be one whole number from 0",
    "more groups": r"has 2 param groups, the optimizer 1",
    "fewer params": r"param_groups\[0\] has 2 parameters, the optimizer's 3",
    "owner": r"param_groups\[0\] belongs to Lion, this is AdamW",
    "lr": r"param_groups\[0\]: AdamW: lr must be in \[0, inf\), got -1.0",
    "state dtype": r"param_groups\[0\]: state_dtype must be one of .*got 'int4'",
    "maximize": r"maximize=True is not supported",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault, path):
    optimizer, params = stepped()
    refused(optimizer, params, spoiled(optimizer.state_dict(), fault), FAULTS[fault])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_slot_is_needed(variant, path):
    optimizer, params = stepped(variant)
    saved = optimizer.state_dict()
    for index, state in saved["state"].items():
        for slot in state:
            if slot == "step" and set(state) == {"step"}:
                continue  # SGD without momentum: a state without anything is none
            if slot == "step" and variant.startswith("SGD"):
                continue  # torch's SGD does not count steps
            broken = saved | {"state": saved["state"] | {index: without(state, slot)}}
            refused(optimizer, params, broken, rf"parameter '{NAMES[index]}' lacks slot '{slot}'")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_other_optimizers_state_loads(name):
    saved = stepped(name)[0].state_dict()
    for other in OPTIMIZERS:
        if other != name:
            params = make_params()
            refused(getattr(optim, other)(params, **BASE), params, saved, rf"belongs to {name}, this is {other}")


def test_torchs_checkpoints_of_other_optimizers(path):
    """They do not say whose they are; their slots do."""
    params = make_params()
    theirs = torch.optim.SGD(params, momentum=0.9, **BASE)
    take_steps(theirs, params, [0])
    optimizer, own = stepped()
    refused(optimizer, own, theirs.state_dict(), r"parameter 'weight' lacks slot 'step'; it has \['momentum_buffer'\]")
    theirs = torch.optim.Adam(params, amsgrad=True, **BASE)
    take_steps(theirs, params, [0])
    optimizer, own = stepped("SGD(momentum=0.9)")
    refused(optimizer, own, theirs.state_dict(), r"parameter 'weight' lacks slot 'momentum_buffer'")
