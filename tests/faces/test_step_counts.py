"""The step counts of the torch face: where they lie, who may write to them, and what they cost a checkpoint."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
import torch
from snapshots import SHAPES, assert_same, make_params, snapshot, take_steps
from torch.utils._python_dispatch import TorchDispatchMode
from variants import BASE, OPTIMIZERS

import rlx_gpu
from rlx_gpu import optim
from rlx_gpu.reference.kronpsgd import retired_slots

DONE = 2
HYPER = {
    "SGD": {"momentum": 0.9},
    "NAdamW": {"momentum_decay": 0.9},
    "SOAP": {"precondition_frequency": 2, "stagger": False},
}


def make(name, params):
    return getattr(optim, name)(params, **BASE, **HYPER.get(name, {}))


def copies(params):
    return [torch.nn.Parameter(param.detach().clone()) for param in params]


def stepped(name):
    params = make_params()
    optimizer = make(name, params)
    take_steps(optimizer, params, range(DONE))
    return optimizer, params


def counts(optimizer):
    return [optimizer.state[param]["step"].item() for group in optimizer.param_groups for param in group["params"]]


def loaded(optimizer, params):
    own = copies(params)
    fresh = make(type(optimizer).__name__, own)
    fresh.load_state_dict(optimizer.state_dict())
    return fresh, own


def copied(optimizer, params, copier):
    twin = copier(optimizer)
    return twin, twin.param_groups[0]["params"]


WAYS = {
    "load_state_dict": loaded,
    "deepcopy": lambda optimizer, params: copied(optimizer, params, copy.deepcopy),
    "pickle": lambda optimizer, params: copied(optimizer, params, lambda one: pickle.loads(pickle.dumps(one))),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_count_is_a_number_beside_its_parameter(name, path):
    optimizer, params = stepped(name)
    for param in params:
        step = optimizer.state[param]["step"]
        assert (step.ndim, step.dtype, step.device) == (0, torch.float32, param.device)
        assert step == DONE and not step.requires_grad
    saved = optimizer.state_dict()["state"]
    assert all(saved[i]["step"].ndim == 0 and saved[i]["step"].dtype == torch.float32 for i in saved)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_copies_count_on_by_themselves(name, path):
    optimizer, params = stepped(name)
    for way, make_copy in WAYS.items():
        twin, own = make_copy(optimizer, params)
        assert counts(twin) == [DONE] * len(SHAPES), way
        take_steps(twin, own, [DONE])
        assert counts(twin) == [DONE + 1] * len(SHAPES), way
    assert counts(optimizer) == [DONE] * len(SHAPES)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_in_other_memory_keep_their_counts(name, path):
    optimizer, params = stepped(name)
    for param in params:
        param.data = param.data.clone()
    take_steps(optimizer, params, [DONE])
    assert counts(optimizer) == [DONE + 1] * len(SHAPES)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_count_written_by_hand_is_that_of_the_next_step(name, path):
    """As if it had been loaded, one parameter's alone, and no other's."""
    optimizer, params = stepped(name)
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = torch.tensor(9.0)
    twin, own = loaded(optimizer, params)
    twin.load_state_dict(saved)
    optimizer.state[params[0]]["step"].fill_(9)
    for run, members in ((optimizer, params), (twin, own)):
        take_steps(run, members, [DONE])
        assert counts(run) == [10, DONE + 1, DONE + 1]
    assert_same(snapshot(optimizer, params), snapshot(twin, own))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hooks_see_and_change_counts(name, path):
    """What a hook makes of a state dict's counts is saved, and loaded."""
    optimizer, params = stepped(name)
    seen = []

    def later(_, saved):
        seen.extend(state["step"].item() for state in saved["state"].values())
        return {**saved, "state": {i: {**one, "step": one["step"] + 5} for i, one in saved["state"].items()}}

    optimizer.register_state_dict_post_hook(later)
    saved = optimizer.state_dict()
    assert seen == [DONE] * len(SHAPES) == counts(optimizer)
    own = copies(params)
    fresh = make(name, own)
    fresh.register_load_state_dict_pre_hook(later)
    fresh.load_state_dict(saved)
    take_steps(fresh, own, [DONE])
    assert counts(fresh) == [DONE + 5 + 5 + 1] * len(SHAPES)


def test_a_count_of_another_form_is_brought_home(path):
    """A host's int64, of one element: as torch and others have written them."""
    optimizer, params = stepped("AdamW")
    twin, own = loaded(optimizer, params)
    for state in optimizer.state.values():
        state["step"] = state["step"].to(torch.int64).reshape(())
    for run, members in ((optimizer, params), (twin, own)):
        take_steps(run, members, [DONE])
    assert_same(snapshot(optimizer, params), snapshot(twin, own))
    assert {state["step"].dtype for state in optimizer.state.values()} == {torch.float32}


class Operations(TorchDispatchMode):
    """Counts the operations on tensors."""

    def __init__(self):
        super().__init__()
        self.made = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.made[str(function)] += 1
        return function(*args, **(kwargs or {}))


def trained(count, name="NAdamW"):
    """An optimizer of so many parameters with a state, without having been stepped."""
    optimizer = make(name, [torch.nn.Parameter(torch.zeros(2)) for _ in range(count)])
    few = make(name, [torch.nn.Parameter(torch.zeros(2))])
    take_steps(few, few.param_groups[0]["params"], [0])
    saved = few.state_dict()
    saved["param_groups"][0]["params"] = list(range(count))
    saved["state"] = {i: dict(saved["state"][0]) for i in range(count)}
    optimizer.load_state_dict(saved)
    return optimizer


def test_the_operations_of_a_state_dict_do_not_grow_with_the_parameters():
    made = []
    for count in (10, 1000):
        optimizer = trained(count)
        with Operations() as operations:
            saved = optimizer.state_dict()
        assert len(saved["state"]) == count
        made.append(operations.made)
    assert made[0] == made[1]
    assert made[0].total() < 30


@pytest.mark.parametrize("copier", [lambda one: one, copy.deepcopy], ids=["itself", "a copy"])
def test_a_pickle_grows_with_the_parameters_alone(copier):
    """Counts share memory, which must not be pickled whole for each."""
    small, large = (len(pickle.dumps(copier(trained(count)))) for count in (100, 1000))
    assert large < 10.5 * small


def test_a_pickle_of_matrices_in_batches_grows_with_them_alone():
    sizes = []
    for count in (2, 20):
        params = [torch.nn.Parameter(torch.ones(8, 8)) for _ in range(count)]
        optimizer = make("SOAP", params)
        for param in params:
            param.grad = torch.ones(8, 8)
        optimizer.step()
        sizes.append(len(pickle.dumps(optimizer)))
    assert sizes[1] < 10.5 * sizes[0]


def test_a_pickle_of_the_trait_grows_with_the_parameters_alone():
    sizes = []
    for count in (10, 100):
        optimizer = rlx_gpu.NAdamW(**BASE, **HYPER["NAdamW"])
        optimizer.step_batch([(f"p{i}", (2,), torch.zeros(2), torch.zeros(2)) for i in range(count)])
        sizes.append(len(pickle.dumps(optimizer)))
    assert sizes[1] < 10.5 * sizes[0]


def old_kron():
    """A checkpoint of the torch face as it was: counts on the host, and the two numbers that follow from them."""
    optimizer, params = stepped("KronPSGD")
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state["step"] = torch.tensor(float(DONE))
        state |= {slot: torch.tensor(value, dtype=torch.float64) for slot, value in retired_slots(DONE).items()}
    return optimizer, params, saved


def test_an_older_checkpoint_of_kronpsgd_loads(path):
    optimizer, params, saved = old_kron()
    own = copies(params)
    fresh = make("KronPSGD", own)
    fresh.load_state_dict(saved)
    for run, members in ((optimizer, params), (fresh, own)):
        take_steps(run, members, range(DONE, DONE + 2))
    assert_same(snapshot(fresh, own), snapshot(optimizer, params))


@pytest.mark.parametrize(
    ("slot", "value", "message"),
    [
        ("update_count", 7.0, r"'update_count/.*\[0\]' is 7, at step 2 it must be 2"),
        ("update_credit", 0.5, r"'update_credit/.*\[0\]' is 0.5, at step 2 it must be 0"),
        ("step", 3.0, r"'update_count/.*\[0\]' is 2, at step 3 it must be 3"),
        ("step", float("nan"), r"step/.*\[0\].* must be one whole number from 0, got nan"),
        ("step", 1.5, r"step/.*\[0\].* must be one whole number from 0, got 1.5"),
    ],
)
def test_an_older_checkpoint_with_a_wrong_count_is_refused(slot, value, message, path):
    optimizer, params, saved = old_kron()
    saved["state"][0][slot] = torch.tensor(value)
    before = snapshot(optimizer, params)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert_same(snapshot(optimizer, params), before)


def test_an_older_checkpoint_of_the_trait(path):
    optimizer = rlx_gpu.KronPSGD(**BASE)
    param, grads = torch.randn(4, 6), torch.randn(2, 4, 6)
    for grad in grads:
        optimizer.step("weight", (4, 6), param, grad)
        optimizer.end_iteration()
    saved = optimizer.state_dict()
    older = {**saved, **{f"{slot}/weight": torch.tensor(value) for slot, value in retired_slots(2).items()}}
    fresh, own = rlx_gpu.KronPSGD(**BASE), param.clone()
    fresh.load_state_dict(older)
    for run, members in ((optimizer, param), (fresh, own)):
        run.step("weight", (4, 6), members, grads[0])
        run.end_iteration()
    assert_same(snapshot(fresh, {"weight": own}), snapshot(optimizer, {"weight": param}))
    with pytest.raises(ValueError, match=r"'update_count/weight' is 1, at step 2 it must be 2"):
        fresh.load_state_dict({**older, "update_count/weight": torch.tensor(1.0)})
