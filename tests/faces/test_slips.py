"""What slips into a call by habit from another package: refused by name, nothing touched, or made to work."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import rlx_gpu
from rlx_gpu import optim


def param() -> torch.nn.Parameter:
    """Three ones with a gradient."""
    made = torch.nn.Parameter(torch.ones(3))
    made.grad = torch.ones(3)
    return made


@pytest.mark.parametrize(
    "scale", [None, "0.5", True, [0.5], torch.ones(2), torch.ones(1, dtype=torch.complex64)], ids=repr
)
@pytest.mark.parametrize("name", ["AdamW", "Muon"])
def test_a_grad_scale_that_is_no_number(name, scale, path):
    one = param()
    optimizer = getattr(optim, name)([one], lr=0.1)
    optimizer.step()
    before = one.detach().clone(), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(TypeError, match="grad_scale must be a number or a real tensor of one element, got"):
        optimizer.step(grad_scale=scale)
    assert torch.equal(one, before[0])
    assert optimizer.state_dict()["state"][0]["step"] == before[1]["state"][0]["step"] == 1


@pytest.mark.parametrize("scale", [2, np.float32(2), np.float64(2), torch.tensor(2), torch.tensor([2.0])], ids=repr)
def test_a_grad_scale_of_any_kind_of_number(scale, path):
    one = param()
    optim.SGD([one], lr=0.5).step(grad_scale=scale)
    assert one.tolist() == [0.0] * 3


def test_a_grad_scale_in_the_closures_place():
    with pytest.raises(TypeError, match="closure must be callable, got Tensor; did you mean grad_scale"):
        optim.SGD([param()], lr=0.1).step(torch.ones(()))


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("skip_nonfinite", "whole optimizer"),
        ("use_muon", "matrix=False"),
        ("wd", "weight_decay"),
    ],
)
def test_a_groups_key_of_another_package(key, remedy):
    with pytest.raises(TypeError, match=f"Muon: '{key}' in a group: .*{remedy}"):
        optim.Muon([{"params": [param()], key: True}], lr=0.1)


@pytest.mark.parametrize("name", ["NAdamW", "QHAdamW", "AdamW", "Lion"])
def test_decoupled_decay_says_what_it_is(name):
    getattr(optim, name)([param()], lr=0.1, decoupled_weight_decay=True)
    with pytest.raises(ValueError, match="decoupled_weight_decay=False is not supported, must be True"):
        getattr(optim, name)([param()], lr=0.1, decoupled_weight_decay=False)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_coupled_decay_says_what_it_is(name):
    getattr(optim, name)([param()], lr=0.1, decoupled_weight_decay=False)
    with pytest.raises(ValueError, match="decoupled_weight_decay=True is not supported, must be False"):
        getattr(optim, name)([param()], lr=0.1, decoupled_weight_decay=True)


def test_some_groups_may_have_an_lr_of_their_own():
    """The others have the default, as in torch."""
    optimizer = optim.AdamW([{"params": [param()], "lr": 0.1}, {"params": [param()]}])
    optimizer.add_param_group({"params": [param()]})
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1e-3, 1e-3]


@pytest.mark.parametrize("face", [optim.SGD, rlx_gpu.SGD])
def test_a_switch_that_is_neither(face):
    leading = ([param()],) if face is optim.SGD else ()
    with pytest.raises(ValueError, match="skip_nonfinite must be True or False, got 'no'"):
        face(*leading, lr=0.1, skip_nonfinite="no")


def test_groups_with_an_lr_leave_adafactor_its_own_rule():
    optimizer = optim.Adafactor([{"params": [param()], "lr": 0.1}])
    optimizer.add_param_group({"params": [param()]})
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, None]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_twice_in_a_group():
    one = param()
    with pytest.raises(ValueError, match="SGD: a group holds the same parameter twice"):
        optim.SGD([one, one], lr=0.1)


def test_an_lr_off_the_host_is_named():
    optimizer = optim.SGD([param()], lr=0.1)
    optimizer.param_groups[0]["lr"] = torch.ones((), device="meta")
    with pytest.raises(ValueError, match="lr must lie on the host, got a tensor on 'meta'"):
        optimizer.step()


def test_parameters_instead_of_gradients_are_not_clipped():
    with pytest.raises(TypeError, match="expected gradients, got parameters"):
        rlx_gpu.global_grad_clip_scale([param()], 1.0)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (0, (3,), "name must be a string, got 0"),
        ("a", 3, "shape must be a tuple"),
        ("a", None, "shape must be a tuple"),
    ],
)
def test_names_and_shapes_of_the_trait(name, shape, message):
    with pytest.raises(TypeError, match=message):
        rlx_gpu.SGD(lr=0.1).step(name, shape, torch.ones(3), torch.ones(3))


@pytest.mark.parametrize(("key", "value"), [("seed", "x"), ("seed", -1), ("rounding", "up")])
def test_storage_options_of_a_state_dict(key, value):
    optimizer = rlx_gpu.SGD(lr=0.1)
    with pytest.raises(ValueError, match=f"state dict: .*{'literal' if value == 'x' else key}"):
        optimizer.load_state_dict({**optimizer.state_dict(), key: value})


def test_hooks_see_the_whole_state_and_may_replace_it():
    optimizer = optim.SGD([param()], lr=0.1)
    seen = []
    optimizer.register_state_dict_post_hook(lambda one, state: seen.append(state["param_groups"][0]["optimizer"]))
    optimizer.register_state_dict_post_hook(lambda one, state: {"wrapped": state})
    assert optimizer.state_dict().keys() == {"wrapped"}
    assert seen == ["SGD"]
    given = optimizer.state_dict()["wrapped"]
    optimizer.register_load_state_dict_pre_hook(lambda one, state: state.pop("extra") and None)
    given["extra"] = 1
    optimizer.load_state_dict(given)
    assert given["extra"] == 1


def test_the_hessian_is_estimated_before_the_first_step_after_loading(path):
    params = torch.ones(4)
    sophias = [rlx_gpu.Sophia(lr=0.1) for _ in range(2)]
    estimate = torch.linspace(1, 2, 4)
    sophias[0].step("a", (4,), params.clone(), torch.ones(4))
    sophias[0].end_iteration()
    sophias[1].load_state_dict(sophias[0].state_dict())
    results = []
    for sophia in sophias:
        sophia.update_hessian("a", estimate)
        stepped = params.clone()
        sophia.step("a", (4,), stepped, torch.ones(4))
        results.append((stepped, sophia.state_dict()["hessian/a"]))
    assert all(map(torch.equal, *results))


def test_a_state_that_no_longer_fits_says_how_to_move_it(path):
    one = torch.nn.Parameter(torch.ones(2, 3, 4, 4))
    one.grad = torch.ones_like(one)
    optimizer = optim.AdamW([one], lr=0.1)
    optimizer.step()
    one.data = one.data.to(memory_format=torch.channels_last)
    if path == "kernels":
        with pytest.raises(ValueError, match=r"load_state_dict\(optimizer.state_dict\(\)\) brings it there"):
            optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()


def test_star_imports_bring_the_optimizers():
    found: dict[str, object] = {}
    exec("from rlx_gpu.optim import *", found)
    assert found["AdamW"] is optim.AdamW
    assert set(dir(optim)) == {*rlx_gpu.TABLE, "Optimizer", "state_bytes"}
