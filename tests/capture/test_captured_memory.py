"""What captured steps read stays: other plans, more groups, checkpoints, and gradients that nobody holds any more."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from recorder import Recorder
from snapshots import assert_same, make_params, set_grads, snapshot, take_steps

import rlx_gpu
from rlx_gpu import optim
from rlx_gpu.engine.capture import CaptureError

NAMES = ["AdamW", "NAdamW", "Adafactor", "Muon"]


def twins(name, **options):
    """Two equal optimizers, stepped twice, and a recording of a step of the first."""
    models = []
    for _ in range(2):
        params = make_params()
        optimizer = getattr(optim, name)(params, **{"lr": torch.tensor(0.1), **options})
        take_steps(optimizer, params, range(2))
        models.append((optimizer, params))
    recorder = Recorder()
    with recorder.capture():
        models[0][0].step()
    return *models, recorder


def grads_of(params):
    return [param.grad for param in params]


def replay(recorder, grads, seed):
    """A replay with the gradients of a seed, in the places that were captured."""
    fresh = make_params()
    set_grads(fresh, seed)
    for grad, new in zip(grads, grads_of(fresh), strict=True):
        grad.copy_(new)
    recorder.replay()


@pytest.mark.parametrize("name", NAMES)
def test_other_plans_take_its_place(name):
    """Steps with fewer parameters, which makes another plan where the others are few, and with other formats."""
    (own, params), (twin, others), recorder = twins(name)
    grads = grads_of(params)
    for optimizer, model in ((own, params), (twin, others)):
        for chosen in (2, 1, 0):
            set_grads(model, 3)
            for place, param in enumerate(model):
                param.grad = param.grad if place == chosen else None
            optimizer.step()
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3, 2))]})
        set_grads([*model, optimizer.param_groups[1]["params"][0]], 4)
        optimizer.step()
    gc.collect()
    replay(recorder, grads, 5)
    set_grads(others, 5)
    twin.param_groups[1]["params"][0].grad = None
    twin.step()
    assert_same(snapshot(own, params), snapshot(twin, others))


@pytest.mark.parametrize("change", [("skip_nonfinite", True), ("max_grad_norm", None)])
def test_other_ways_to_scale_take_its_place(change):
    (own, params), (twin, others), recorder = twins("AdamW", max_grad_norm=1.0)
    grads = grads_of(params)
    for optimizer, model in ((own, params), (twin, others)):
        setattr(optimizer, *change)
        take_steps(optimizer, model, [3])
    gc.collect()
    replay(recorder, grads, 5)
    twin.skip_nonfinite, twin.max_grad_norm = False, 1.0  # as when it was captured
    take_steps(twin, others, [5])
    assert_same(snapshot(own, params), snapshot(twin, others))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_after_the_last_replay_takes_its_own_numbers(name):
    """Once captures are forgotten: not the addresses of gradients, nor the factor, that the replay has left."""
    (own, params), (twin, others), recorder = twins(name)
    kept = grads_of(params)
    for optimizer, model in ((own, params), (twin, others)):
        take_steps(optimizer, model, [3])
    replay(recorder, kept, 4)
    own.forget_captures()
    for grad in kept:
        grad.fill_(float("nan"))
    for optimizer, model in ((own, params), (twin, others)):
        if optimizer is twin:
            take_steps(twin, others, [4])
        fresh = make_params()
        set_grads(fresh, 3)
        for param, source in zip(model, fresh, strict=True):
            param.grad.copy_(source.grad)
        optimizer.step()
    assert_same(snapshot(own, params), snapshot(twin, others))


@pytest.mark.parametrize("name", ["AdamW", "Muon"])
def test_numbers_that_no_rule_of_the_plan_reads_may_change(name):
    """And those that a replay reads on the device."""
    (own, _), _, _ = twins(name)
    change = {"fallback_eps": 1e-4, "fallback_lr_scale": 0.5} if name == "Muon" else {"eps": 1e-4, "betas": (0.5, 0.6)}
    own.param_groups[0].update(change)
    own.send_hyperparameters()


@pytest.mark.parametrize("name", NAMES)
def test_loading_writes_into_place(name):
    """State, counts and a learning rate in a tensor; the next replay goes on from them."""
    (own, params), (twin, others), recorder = twins(name)
    grads, held = grads_of(params), {param: dict(own.state[param]) for param in params}
    saved = copy.deepcopy(own.state_dict())
    saved["param_groups"][0]["lr"] = torch.tensor(0.025)
    saved["param_groups"][0]["weight_decay"] = 0.5
    for seed in range(3):
        replay(recorder, grads, seed)
    with torch.no_grad():
        for param, other in zip(params, others, strict=True):
            param.copy_(other)
    own.load_state_dict(saved)
    twin.load_state_dict(copy.deepcopy(saved))
    for param in params:
        assert all(own.state[param][slot] is value for slot, value in held[param].items())
    gc.collect()
    for seed in range(3):
        replay(recorder, grads, seed)
        take_steps(twin, others, [seed])
    assert_same(snapshot(own, params), snapshot(twin, others))
    take_steps(own, params, [7])
    take_steps(twin, others, [7])
    assert_same(snapshot(own, params), snapshot(twin, others))


def test_a_checkpoint_that_replays_could_not_follow_changes_nothing():
    (own, params), _, _ = twins("AdamW")
    before = snapshot(own, params)
    for change in ({"amsgrad": True}, {"state_dtype": "bfloat16"}):
        fresh = make_params()
        other = optim.AdamW(fresh, lr=0.1, **change)
        take_steps(other, fresh, range(3))
        with pytest.raises(ValueError, match="captured"):
            own.load_state_dict(other.state_dict())
        assert_same(snapshot(own, params), before)
    never_stepped = optim.AdamW(make_params(), lr=0.1)
    with pytest.raises(ValueError, match=r"slot '.*' .* is missing, but captured"):
        own.load_state_dict(never_stepped.state_dict())
    assert_same(snapshot(own, params), before)


def test_the_trait_refuses_to_load():
    optimizer, param = rlx_gpu.AdamW(lr=0.1), torch.ones(5)
    items = [("p", (5,), param, torch.ones(5))]
    optimizer.step_batch(items)
    optimizer.end_iteration()
    saved, recorder = optimizer.state_dict(), Recorder()
    with recorder.capture():
        optimizer.step_batch(items)
    optimizer.end_iteration()
    with pytest.raises(RuntimeError, match="captured steps read this state; load after forget_captures"):
        optimizer.load_state_dict(saved)
    recorder.replay()
    assert optimizer.state_dict()["step/p"] == 2


def test_the_trait_sends_a_learning_rate_to_replays():
    own, twin = (rlx_gpu.Lion(lr=0.1) for _ in range(2))
    params = [torch.ones(5) for _ in range(2)]
    grad, recorder = torch.ones(5), Recorder()
    for optimizer, param in zip((own, twin), params, strict=True):
        optimizer.step("p", (5,), param, grad)
        optimizer.end_iteration()
    with recorder.capture():
        own.step("p", (5,), params[0], grad)
    own.end_iteration()
    for optimizer in (own, twin):
        optimizer.set_lr(0.02)
    own.send_hyperparameters()
    recorder.replay()
    twin.step("p", (5,), params[1], grad)
    assert torch.equal(*params)


def test_a_copy_is_free():
    """A deep copy has nothing captured, and does not share what was."""
    (own, _params), _, _ = twins("AdamW")
    twin = copy.deepcopy(own)
    twin.load_state_dict(own.state_dict())
    assert not twin._engine.captured_states() and own._engine.captured_states()
    with Recorder().capture(), pytest.raises(CaptureError, match="first step"):
        twin.step()


def test_a_replay_of_freed_memory_is_noticed():
    """A control: the recorder itself keeps nothing of the engine's alive."""
    (own, params), _, recorder = twins("AdamW")
    own._engine.steps.pinned.clear()
    own._engine.forget()
    del own, params
    gc.collect()
    with pytest.raises(AssertionError, match="memory that was freed"):
        recorder.replay()
