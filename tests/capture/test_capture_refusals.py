"""What cannot be captured is refused while it is captured, by name and with the remedy; and nothing has changed."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from recorder import Recorder
from snapshots import assert_same, make_params, set_grads, snapshot, take_steps

import rlx_gpu
from rlx_gpu import optim
from rlx_gpu.engine import capture
from rlx_gpu.engine.capture import CaptureError


def stepped(name="AdamW", steps=1, **options):
    params = make_params()
    optimizer = getattr(optim, name)(params, **{"lr": 0.1, **options})
    take_steps(optimizer, params, range(steps))
    return optimizer, params


def captured(optimizer):
    recorder = Recorder()
    with recorder.capture():
        optimizer.step()
    return recorder


def refused(optimizer, params, *words, step=None):
    """The capture is refused in these words, and then a step goes on as if nothing had been."""
    before = snapshot(optimizer, params)
    with Recorder().capture(), pytest.raises(CaptureError) as error:
        (step or optimizer.step)()
    for word in words:
        assert word in str(error.value)
    assert_same(snapshot(optimizer, params), before)


@pytest.mark.parametrize("name", ["SOAP", "KronPSGD"])
@pytest.mark.parametrize("steps", [0, 1])
def test_optimizers_whose_launches_depend_on_the_step(name, steps):
    optimizer, params = stepped(name, steps)
    set_grads(params, 1)
    refused(optimizer, params, "depends on its number", "step outside")


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "Muon"])
def test_a_first_step(name):
    optimizer, params = stepped(name, 0)
    set_grads(params, 1)
    refused(optimizer, params, "first step", "take one like it before")
    take_steps(optimizer, params, [0])
    captured(optimizer)


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "Muon"])
@pytest.mark.parametrize("place", [0, 2])
def test_another_set_of_gradients(name, place):
    """One less, or one more; also when it is tried again."""
    optimizer, params = stepped(name)
    params[place].grad = None
    for _ in range(2):
        refused(optimizer, params, "not the same parameters", "take one step with these")
    optimizer.step()
    captured(optimizer)
    set_grads(params, 1)
    refused(optimizer, params, "not the same parameters")


def test_gradients_of_another_format():
    params = make_params(torch.bfloat16)
    optimizer = optim.AdamW(params, lr=0.1)
    take_steps(optimizer, params, [0])
    for param in params:
        param.grad = None
        param.grad_dtype = torch.float32
        param.grad = torch.ones(param.shape)
    refused(optimizer, params, "unlike the last", "formats of gradients")


@pytest.mark.parametrize("change", [{"lr": 0.3}, {"weight_decay": 0.3}, {"betas": (0.5, 0.9)}])
def test_hyperparameters_that_were_not_sent(change):
    optimizer, params = stepped()
    optimizer.param_groups[0].update(change)
    refused(optimizer, params, "have changed since the last step", "send_hyperparameters()")
    optimizer.send_hyperparameters()
    captured(optimizer)


@pytest.mark.parametrize("change", ["max_grad_norm", "skip_nonfinite", "grad_scale", "found_inf"])
def test_another_way_to_scale(change):
    optimizer, params = stepped(fused=True)
    value = {"max_grad_norm": 1.0, "skip_nonfinite": True}.get(change, torch.tensor(2.0))
    setattr(optimizer, change, value)
    refused(optimizer, params, "have changed since the last step", "take one like it")
    optimizer.step()
    captured(optimizer)


def test_a_clipping_norm_that_was_not_sent():
    optimizer, params = stepped(max_grad_norm=1.0)
    optimizer.max_grad_norm = 0.5
    refused(optimizer, params, "max_grad_norm", "send_hyperparameters()")
    optimizer.send_hyperparameters()
    captured(optimizer)


def test_a_device_that_is_not_the_captured_one(monkeypatch):
    optimizer, _params = stepped()
    monkeypatch.setattr(capture, "capturing", lambda: torch.device("cuda", 1))
    with pytest.raises(CaptureError, match=r"AdamW: parameter .* is on 'cpu', .* captured on 'cuda:1'"):
        optimizer.step()


def test_norms_of_tensors():
    _optimizer, params = stepped()
    for norm in (rlx_gpu.l2_norm, lambda x: rlx_gpu.global_grad_clip_scale([x], 1.0)):
        with Recorder().capture(), pytest.raises(CaptureError, match="max_grad_norm"):
            norm(params[0].grad)


def test_more_captures_in_a_row_than_there_is_room_for():
    """Each with gradients in another place; a step makes room again."""
    optimizer, params = stepped()
    alive = []
    for _ in range(16):
        alive += [param.grad for param in params]
        set_grads(params, 1)
        captured(optimizer)
        captured(optimizer)  # in the same place takes none
    alive += [param.grad for param in params]
    set_grads(params, 1)
    refused(optimizer, params, "no room", "take a step outside")
    optimizer.step()
    captured(optimizer)


@pytest.mark.parametrize("name", ["AdamW", "Muon"])
def test_every_capture_counts_until_it_is_forgotten(name):
    """Also one of a plan that others have taken the place of."""
    optimizer, params = stepped(name, max_grad_norm=1.0)
    captured(optimizer)
    optimizer.max_grad_norm = None
    params[0].grad = None
    optimizer.step()
    captured(optimizer)
    with pytest.raises(ValueError, match="max_grad_norm was switched off"):
        optimizer.send_hyperparameters()
    optimizer.forget_captures()
    assert not optimizer._engine.captured_states()
    optimizer.send_hyperparameters()


def test_groups_in_another_order_and_states_of_ones_own_are_refused():
    for change in (lambda one: one.param_groups.reverse(), lambda one: one.state.clear()):
        params = make_params()
        optimizer = optim.SGD([{"params": params[:1]}, {"params": params[1:], "lr": 0.01}], lr=0.1, momentum=0.9)
        take_steps(optimizer, params, [0])
        captured(optimizer)
        change(optimizer)
        for call in (optimizer.send_hyperparameters, lambda one=optimizer: one.load_state_dict(one.state_dict())):
            with pytest.raises(ValueError, match="has another group or state than when a step was captured"):
                call()


def test_a_learning_rate_whose_memory_was_replaced_is_refused():
    optimizer, _ = stepped(lr=torch.tensor(0.1))
    captured(optimizer)
    optimizer.param_groups[0]["lr"].data = torch.tensor(0.01)
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['lr'\]: was moved after a step was captured"):
        optimizer.send_hyperparameters()


def test_a_value_that_chooses_another_rule_is_refused():
    optimizer, _ = stepped("SGD", momentum=0.9)
    captured(optimizer)
    optimizer.param_groups[0]["momentum"] = 0.0
    with pytest.raises(ValueError, match="their values choose another rule than captured steps run"):
        optimizer.send_hyperparameters()


def test_numpy_arrays_are_not_brought_to_a_device(monkeypatch):
    optimizer, x = rlx_gpu.AdamW(lr=0.1), np.ones(3, np.float32)
    optimizer.step("w", (3,), x, x)
    optimizer.end_iteration()
    with Recorder().capture(), pytest.raises(CaptureError, match="parameter 'w': a NumPy array"):
        optimizer.step("w", (3,), x, x)


CHANGES = {
    "amsgrad": True,
    "state_dtype": "bfloat16",
    "rounding": "stochastic",
    "lr": 0.3,
}


@pytest.mark.parametrize("key", CHANGES)
def test_what_replays_cannot_follow_is_refused_when_sent(key):
    """And everything that was to be sent with it stays."""
    optimizer, params = stepped(lr=torch.tensor(0.1))
    captured(optimizer)
    optimizer.param_groups[0].update({key: CHANGES[key], "weight_decay": 0.4})
    with pytest.raises(ValueError, match=re.escape(f"param_groups[0]['{key}']") + ".*captured"):
        optimizer.send_hyperparameters()
    (plan,) = optimizer._engine.steps
    assert not plan.rows[params[0].device][0].knows(optimizer._all_settings())


@pytest.mark.parametrize("new", [torch.tensor(0.1), torch.tensor(0.2)], ids=["tensor", "another"])
@pytest.mark.parametrize("old", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_another_home_of_the_learning_rate_is_refused_when_sent(old, new):
    """Replays would go on with the one that was captured."""
    optimizer, _ = stepped(lr=old)
    captured(optimizer)
    optimizer.param_groups[0]["lr"] = new
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['lr'\].*when a step was captured"):
        optimizer.send_hyperparameters()


def test_a_group_that_was_removed_is_refused_when_sent():
    params = make_params()
    optimizer = optim.AdamW([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    take_steps(optimizer, params, [0])
    del optimizer.param_groups[1]
    optimizer.send_hyperparameters()  # nothing is captured, and the next step makes another plan
    take_steps(optimizer, params, [1])
    captured(optimizer)
    optimizer.param_groups.clear()
    with pytest.raises(ValueError, match="has another group or state than when a step was captured"):
        optimizer.send_hyperparameters()


def test_a_parameter_that_was_moved_is_refused_when_sent():
    optimizer, params = stepped()
    captured(optimizer)
    params[1].data = params[1].data.clone()
    with pytest.raises(ValueError, match=r"parameter .*\[1\].* was moved after a step was captured"):
        optimizer.send_hyperparameters()


@pytest.mark.parametrize("what", ["send_hyperparameters", "state_dict", "load_state_dict"])
def test_what_is_no_step(what):
    optimizer, params = stepped()
    call = getattr(optimizer, what)
    given = (optimizer.state_dict(),) if what == "load_state_dict" else ()
    refused(optimizer, params, "the capture", step=lambda: call(*given))


def test_capturing_again_is_the_remedy_that_it_is_said_to_be():
    """For a hyperparameter of the host, and where a capture failed after the step."""
    optimizer, _ = stepped("Muon")
    captured(optimizer)
    optimizer.param_groups[0]["ns_steps"] = 3
    with pytest.raises(ValueError, match=r"ns_steps.*capture again, after forget_captures"):
        optimizer.send_hyperparameters()
    optimizer.forget_captures()
    optimizer.step()
    captured(optimizer)
    optimizer.param_groups[0]["lr"] = 0.02
    optimizer.send_hyperparameters()
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(("name", "key", "value"), [("Muon", "ns_steps", 3), ("Muon", "adjust_lr_fn", "unit_rms")])
def test_numbers_of_the_host_are_refused_when_sent(name, key, value):
    optimizer, _ = stepped(name)
    captured(optimizer)
    optimizer.param_groups[0][key] = value
    with pytest.raises(ValueError, match=rf"{key}.*captured"):
        optimizer.send_hyperparameters()


@pytest.mark.parametrize(("switch", "value"), [("skip_nonfinite", True), ("max_grad_norm", 1.0)])
def test_a_switch_after_the_capture_is_refused_when_sent(switch, value):
    optimizer, _ = stepped()
    captured(optimizer)
    setattr(optimizer, switch, value)
    with pytest.raises(ValueError, match=f"{switch} was switched on"):
        optimizer.send_hyperparameters()
