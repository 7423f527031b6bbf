"""What torch.optim's users rely on: groups, closures, gradients that are absent, schedulers, hooks, switches."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
from snapshots import assert_close_states, make_params, set_grads, snapshot, take_steps
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook
from variants import BASE, OPTIMIZERS, VARIANTS, torchs

from rlx_gpu import TABLE, optim

BESIDE_TORCH = ("SGD(momentum=0.9, dampening=0.9)", "Adam", "AdamW")


def make(variant, params, **more):
    name, hyper = VARIANTS[variant]
    return getattr(optim, name)(params, **{**hyper, **more})


def twins(variant):
    """The same parameters twice, under ours and under torch's."""
    own, other = make_params(), make_params()
    return (own, make(variant, own)), (other, torchs(variant, other))


def assert_params_close(own, other):
    assert_close_states(dict(enumerate(own)), dict(enumerate(other)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_have_their_own_hyperparameters(variant, path):
    """Two groups of one optimizer do what two optimizers do."""
    name, hyper = VARIANTS[variant]
    together, apart = make_params(), make_params()
    second = {"lr": 0.01, "weight_decay": 0.3}
    one = getattr(optim, name)([{"params": together[:1]}, {"params": together[1:], **second}], **hyper)
    two = [getattr(optim, name)(apart[:1], **hyper), getattr(optim, name)(apart[1:], **{**hyper, **second})]
    for seed in range(3):
        set_grads(together, seed)
        set_grads(apart, seed)
        one.step()
        for optimizer in two:
            optimizer.step()
    for left, right in zip(together, apart, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("variant", BESIDE_TORCH)
def test_a_group_added_later_starts_from_step_one(variant, path):
    (own, ours), (other, theirs) = twins(variant)
    for params, optimizer in ((own, ours), (other, theirs)):
        take_steps(optimizer, params, range(2))
        late = make_params(seed=9)
        params += late
        optimizer.add_param_group({"params": late, "lr": 0.01})
        take_steps(optimizer, params, range(2, 5))
    assert_params_close(own, other)
    assert [ours.state[param]["step"].item() for param in own] == [5, 5, 5, 3, 3, 3]


@pytest.mark.parametrize("variant", BESIDE_TORCH)
def test_gradients_that_come_and_go(variant, path):
    """A parameter without a gradient is left alone and does not count the step."""
    (own, ours), (other, theirs) = twins(variant)
    for params, optimizer in ((own, ours), (other, theirs)):
        for seed, absent in enumerate((1, None, 0, 2)):
            set_grads(params, seed)
            if absent is not None:
                params[absent].grad = None
            optimizer.step()
    assert_params_close(own, other)
    assert [ours.state[param]["step"].item() for param in own] == [3, 3, 3]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_frozen_parameter_stays_and_has_no_state(name, path):
    params = make_params()
    params[0].requires_grad_(False)
    before = params[0].clone()
    optimizer = make(name, params)
    set_grads(params[1:], 0)
    optimizer.step()
    assert torch.equal(params[0], before)
    assert not optimizer.state[params[0]]
    assert optimizer.state[params[1]]["step"] == 1


def test_a_step_without_any_gradient_does_nothing():
    params = make_params()
    optimizer = make("AdamW", params)
    before = snapshot(optimizer, params)
    optimizer.step()
    assert snapshot(optimizer, params) == before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_closure_runs_with_gradients_and_returns_the_loss(name, path):
    params = make_params()
    optimizer = make(name, params)

    def closure():
        optimizer.zero_grad()
        loss = sum(param.square().sum() for param in params)
        loss.backward()
        return loss

    expected = sum(param.detach().square().sum() for param in params)
    assert torch.equal(optimizer.step(closure), expected)
    assert params[0].grad is not None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none, path):
    """A gradient of zero still decays the parameter; none at all does not."""
    params = make_params()
    optimizer = make("AdamW", params)
    take_steps(optimizer, params, [0])
    optimizer.zero_grad(set_to_none)
    before = [param.clone() for param in params]
    optimizer.step()
    for param, old in zip(params, before, strict=True):
        assert torch.equal(param, old) == set_to_none


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.3),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=8, cycle_momentum=True),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.8**epoch),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.7)], milestones=[2]
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("variant", ["SGD(momentum=0.9, dampening=0.9)", "AdamW"])
def test_schedulers(variant, scheduler, path):
    (own, ours), (other, theirs) = twins(variant)
    for params, optimizer in ((own, ours), (other, theirs)):
        schedule = SCHEDULERS[scheduler](optimizer)
        for seed in range(6):
            take_steps(optimizer, params, [seed])
            schedule.step()
    assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"] != BASE["lr"]
    assert_params_close(own, other)


def test_lr_in_a_tensor_follows_its_scheduler(path):
    lr = torch.tensor(0.05)
    tensor, plain = make_params(), make_params()
    optimizers = [make("AdamW", tensor, lr=lr), make("AdamW", plain)]
    schedules = [lr_scheduler.StepLR(optimizer, 1, gamma=0.5) for optimizer in optimizers]
    for seed in range(3):
        for params, optimizer, schedule in zip((tensor, plain), optimizers, schedules, strict=True):
            take_steps(optimizer, params, [seed])
            schedule.step()
    assert_params_close(tensor, plain)


def test_step_hooks(path):
    calls = []
    params = make_params()
    optimizer = make("AdamW", params)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    handle = register_optimizer_step_post_hook(lambda *_: calls.append("global"))
    take_steps(optimizer, params, [0])
    handle.remove()
    assert calls == ["before", "after", "global"]


def test_profiler_names_the_step(path):
    params = make_params()
    optimizer = make("Lion", params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        take_steps(optimizer, params, [0])
    assert any("Optimizer.step#Lion.step" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("switch", ["foreach", "fused", "capturable"])
@pytest.mark.parametrize("value", [True, False, None])
def test_torchs_choices_of_implementation_change_nothing(switch, value):
    params = make_params()
    optimizer = make("AdamW", params, **{switch: value})
    assert type(optimizer) is optim.AdamW


@pytest.mark.parametrize("switch", ["maximize", "differentiable"])
@pytest.mark.parametrize("where", ["constructor", "group"])
def test_switches_that_are_not_built_are_refused(switch, where):
    params = make_params()
    assert make("AdamW", params, **{switch: False})
    with pytest.raises(ValueError, match=rf"{switch}=True is not supported"):
        if where == "constructor":
            make("AdamW", params, **{switch: True})
        else:
            make("AdamW", [{"params": params, switch: True}])


def test_grad_scaler_skips_and_unscales(path):
    """torch.amp.GradScaler works unchanged."""
    own, other = make_params(), make_params()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    ours, plain = make("AdamW", own), make("AdamW", other)
    for factor in (1.0, float("inf"), 1.0):
        ours.zero_grad()
        scaler.scale(factor * sum(param.square().sum() for param in own)).backward()
        scaler.step(ours)
        scaler.update()
        if factor == 1.0:
            plain.zero_grad()
            sum(param.square().sum() for param in other).backward()
            plain.step()
    assert_params_close(own, other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_signature_has_the_declared_hyperparameters(name):
    parameters = inspect.signature(getattr(optim, name)).parameters
    declared = [hyper.name for hyper in TABLE[name].hyperparameters]
    assert list(itertools.islice(parameters, len(declared) + 1)) == ["params", *declared]
    for hyper in TABLE[name].hyperparameters:
        assert parameters[hyper.name].default == hyper.default
        assert hyper.name in getattr(optim, name).__doc__
