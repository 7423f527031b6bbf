"""Tensors that a user moves, swaps or writes to behind the optimizer's back."""

from __future__ import annotations

import pytest
import torch
from snapshots import assert_same, make_params, set_grads, snapshot, take_steps
from variants import BASE, OPTIMIZERS

from rlx_gpu import optim

BEFORE, AFTER = range(2), range(2, 4)


def pair(name="AdamW", **more):
    """Two equal runs after two steps: one to disturb, one to compare with."""
    runs = []
    for _ in range(2):
        params = make_params()
        optimizer = getattr(optim, name)(params, **{**BASE, **more})
        take_steps(optimizer, params, BEFORE)
        runs.append((optimizer, params))
    return runs


def assert_alike(runs):
    for optimizer, params in runs:
        take_steps(optimizer, params, AFTER)
    (one, own), (other, others) = runs
    assert_same(snapshot(one, own), snapshot(other, others))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_moved_to_new_memory(name, path):
    runs = pair(name)
    for param in runs[0][1]:
        old = param.data
        param.data = param.data.clone()
        old.fill_(float("nan"))  # whoever still reads it is found out
    assert_alike(runs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_in_new_memory_every_step(name, path):
    runs = pair(name)
    optimizer, params = runs[0]
    kept = []
    for seed in AFTER:
        set_grads(params, seed)
        kept += [param.grad for param in params]
        optimizer.step()
        for grad in kept:
            grad.fill_(float("nan"))
    take_steps(*runs[1], AFTER)
    assert_same(snapshot(*runs[0]), snapshot(*runs[1]))


def test_gradients_in_the_same_memory_every_step(path):
    runs = pair()
    optimizer, params = runs[0]
    buffers = [torch.empty_like(param) for param in params]
    for seed in AFTER:
        set_grads(params, seed)
        for param, buffer in zip(params, buffers, strict=True):
            param.grad = buffer.copy_(param.grad)
        optimizer.step()
    take_steps(*runs[1], AFTER)
    assert_same(snapshot(*runs[0]), snapshot(*runs[1]))


def test_gradients_are_never_written_to(path):
    for name in OPTIMIZERS:
        optimizer, params = pair(name)[0]
        set_grads(params, 7)
        before = [param.grad.clone() for param in params]
        optimizer.step(grad_scale=0.5)
        for param, grad in zip(params, before, strict=True):
            assert torch.equal(param.grad, grad), name


@pytest.mark.parametrize("slot", ["exp_avg", "exp_avg_sq", "step"])
def test_a_state_tensor_replaced(slot, path):
    runs = pair()
    for state in runs[0][0].state.values():
        old = state[slot]
        state[slot] = old.clone()
        old.fill_(float("nan"))
    assert_alike(runs)


@pytest.mark.parametrize("slot", ["exp_avg", "step", "mu_product"])
def test_a_state_tensor_written_to(slot, path):
    """In place, as a user who resets the momentum does: the same as loading that value."""
    (optimizer, params), (other, twins) = pair("NAdamW", momentum_decay=4e-3)
    for state in optimizer.state.values():
        state[slot].fill_(0.5 if slot == "mu_product" else 7.0)
    saved = optimizer.state_dict()
    other.load_state_dict(saved)
    assert_alike([(optimizer, params), (other, twins)])


def test_state_cleared_starts_over(path):
    (optimizer, params), _ = pair()
    optimizer.state.clear()
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
    fresh = optim.AdamW(twins, **BASE)
    assert_alike([(optimizer, params), (fresh, twins)])


def test_the_step_count_of_one_parameter_written_by_the_user(path):
    (optimizer, params), (other, twins) = pair()
    optimizer.state[params[1]]["step"].fill_(9)
    saved = other.state_dict()
    saved["state"][1]["step"] = torch.tensor(9.0)
    other.load_state_dict(saved)
    assert_alike([(optimizer, params), (other, twins)])
    assert [optimizer.state[param]["step"].item() for param in params] == [4, 11, 4]


def test_a_group_that_holds_another_parameter_now(path):
    (optimizer, params), (other, twins) = pair()
    for run, own in ((optimizer, params), (other, twins)):
        new = torch.nn.Parameter(torch.ones(3, 3))
        del run.state[own[0]]
        run.param_groups[0]["params"][0] = own[0] = new
        take_steps(run, own, AFTER)
        assert run.state[new]["step"] == 2
    assert_same(snapshot(optimizer, params), snapshot(other, twins))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_invalidates_graphs_that_saved_the_parameter(name, path):
    params = make_params()
    optimizer = getattr(optim, name)(params, **BASE)
    loss = (params[0] * params[0]).sum()
    take_steps(optimizer, params, [0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_two_parameters_in_one_storage(path):
    """Neighbours in one buffer, the second unaligned: each is updated, and the gap between them is not."""
    buffer = torch.randn(2050)
    before = buffer.clone()
    params = [torch.nn.Parameter(buffer[:1025]), torch.nn.Parameter(buffer[1027:2049])]
    apart = [torch.nn.Parameter(param.detach().clone()) for param in params]
    for members in (params, apart):
        optimizer = optim.AdamW(members, **BASE)
        take_steps(optimizer, members, range(2))
    for param, twin in zip(params, apart, strict=True):
        assert torch.equal(param, twin)
    assert torch.equal(buffer[1025:1027], before[1025:1027])
    assert torch.equal(buffer[2049:], before[2049:])


def test_a_parameter_cut_down_in_place_is_refused(path):
    """The same memory and strides, fewer rows: the state no longer fits."""
    params = [torch.nn.Parameter(torch.randn(4, 6))]
    optimizer = optim.AdamW(params, **BASE)
    set_grads(params, 0)
    optimizer.step()
    whole = params[0].data
    before = whole.clone()
    grad = params[0].grad
    params[0].grad = None
    params[0].data = whole[:2]
    params[0].grad = grad[:2]
    with pytest.raises(ValueError, match=r"shape \(4, 6\).*\(2, 6\)"):
        optimizer.step()
    assert torch.equal(whole, before)


def test_a_parameter_transposed_in_place_is_refused(path):
    """The same memory, other strides: reading the state flat would pair wrong elements."""
    params = [torch.nn.Parameter(torch.randn(4, 4))]
    optimizer = optim.AdamW(params, **BASE)
    gradient = torch.randn(4, 4)
    params[0].grad = gradient
    optimizer.step()
    params[0].data = params[0].data.T
    params[0].grad = gradient
    with pytest.raises(ValueError, match=r"stride"):
        optimizer.step()


def test_a_parameter_moved_to_the_next_group(path):
    params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(3)]
    for param in params:
        param.grad = torch.ones(3)
    optimizer = optim.SGD([{"params": params[:2], "lr": 1.0}, {"params": params[2:], "lr": 100.0}])
    optimizer.step()
    optimizer.param_groups[1]["params"].insert(0, optimizer.param_groups[0]["params"].pop())
    optimizer.step()
    assert [param[0].item() for param in params] == [-2, -101, -200]
