"""Steps captured in CUDA graphs: replays are steps to the bit, and what cannot be captured is refused."""

from __future__ import annotations

import gc

import pytest
import torch
from gpu_graphs import Graph
from gpu_models import NUMEL, make, make_params
from variants import SCHEDULED, VARIANTS

import rlx_gpu
from rlx_gpu import optim
from rlx_gpu.engine.capture import CaptureError
from rlx_gpu.parity.storages import find_storages

CAPTURED = [variant for variant, (name, _) in VARIANTS.items() if name not in SCHEDULED]
STORAGES = [
    pytest.param(one, id=str(one), marks=() if one.name == "float32" else pytest.mark.gpu) for one in find_storages()
]
BAD = 2  # the replay whose gradients hold a NaN


def size(device):
    """Elements of a large parameter."""
    return NUMEL if device == "cuda" else 1024


def twins(variant, device, storage, **options):
    """Two equal models with gradients that stay where they are, stepped twice, and their optimizers."""
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        dtypes = getattr(torch, storage.param), getattr(torch, storage.grad)
        params = [torch.nn.Parameter(one.detach().to(dtypes[0])) for one in make_params(device, size(device))]
        for param in params:
            param.grad = torch.zeros_like(param)
        lr = torch.tensor(0.05, device=device)
        formats = {"state_dtype": storage.state, "rounding": storage.rounding, "seed": 7}
        optimizer = make(variant, params, **{"lr": lr, **formats, **options})
        for seed in range(2):
            fill(params, seed)
            optimizer.step()
        models.append((optimizer, params, lr))
    return models


def fill(params, seed, bad=False):
    """New gradients in the place of the old ones."""
    generator = torch.Generator(params[0].device).manual_seed(seed)
    for param in params:
        param.grad.copy_(torch.randn(param.shape, generator=generator, device=param.device))
    if bad:
        params[1].grad.view(-1)[-1] = float("nan")


def assert_same(own, other):
    """Equal parameters and states, to the bit."""
    (optimizer, params, _), (plain, others, _) = own, other
    for param, twin in zip(params, others, strict=True):
        assert torch.equal(param, twin)
        state, wanted = optimizer.state[param], plain.state[twin]
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[slot], wanted[slot]) for slot in wanted), param.shape


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("variant", CAPTURED)
def test_replays_are_steps(variant, storage, device):
    """With a NaN in between, a learning rate on the device that changes, and clipping."""
    own, other = twins(variant, device, storage, skip_nonfinite=True, max_grad_norm=1.0)
    graph = Graph(device)
    with graph.capture():
        own[0].step()
    for seed in range(5):
        for optimizer, params, lr in (own, other):
            lr.mul_(0.7)
            fill(params, seed, bad=seed == BAD)
            if optimizer is own[0]:
                graph.replay()
            else:
                optimizer.step()
        assert torch.equal(own[0].grad_norm, other[0].grad_norm) or seed == BAD
    assert_same(own, other)
    assert {state["step"].item() for state in own[0].state.values()} == {6.0}


@pytest.mark.gpu
@pytest.mark.parametrize("variant", CAPTURED)
def test_a_captured_training_step(variant):
    """Backward pass, unscaling, clipping and update in one graph, whose gradients lie in its own memory."""
    (storage,) = find_storages(["float32"])
    own, other = twins(variant, "cuda", storage, max_grad_norm=1.0, fused=True)
    data, scalers = torch.ones((), device="cuda"), []

    def train(model, scaler):
        optimizer, params, _ = model
        loss = sum((param * data).square().sum() for param in params)
        grads = torch.autograd.grad(scaler.scale(loss), params)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        scaler.step(optimizer)

    for model in (own, other):
        scaler = torch.amp.GradScaler("cuda", init_scale=8.0)
        train(model, scaler)
        scaler.update()
        scalers.append(scaler)
        for param in model[1]:
            param.grad = None
    torch.cuda.synchronize()
    graph = Graph("cuda")
    with graph.capture():
        train(own, scalers[0])
    for step in range(4):
        data.fill_(float("inf") if step == BAD else 1.0 + step)
        graph.replay()
        train(other, scalers[1])
        scalers[1]._per_optimizer_states.clear()
    assert_same(own, other)


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "Muon"])
def test_a_graph_outlives_other_plans_and_loading(name, device):
    """Memory that it read is not given to others, whatever takes its place."""
    (storage,) = find_storages(["float32"])
    (variant,) = [one for one in CAPTURED if one == name]
    own, other = twins(variant, device, storage)
    graph = Graph(device)
    with graph.capture():
        own[0].step()
    grads = [param.grad for param in own[1]]
    for optimizer, params, _ in (own, other):
        saved = optimizer.state_dict()
        for chosen in range(len(params)):
            for place, param in enumerate(params):
                param.grad = torch.ones_like(param) if place == chosen else None
            optimizer.step()
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3, 2, device=device))]})
        saved["param_groups"].append({**saved["param_groups"][0], "params": [99]})
        optimizer.load_state_dict(saved)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad if optimizer is own[0] else grad.clone()
    gc.collect()
    garbage = [torch.full((4096,), 7, dtype=torch.int64, device=device) for _ in range(100)]
    for seed in range(3):
        fill(own[1], seed)
        graph.replay()
        fill(other[1], seed)
        other[0].step()
    assert_same(own, other)
    del garbage


@pytest.mark.parametrize("name", SCHEDULED)
def test_launches_that_depend_on_the_step_are_refused(name, device):
    params = make_params(device, size(device))
    optimizer = make(name, params)
    optimizer.step()
    with pytest.raises(CaptureError, match="depends on its number"), Graph(device).capture():
        optimizer.step()
    optimizer.step()


def test_a_first_step_and_norms_of_tensors_are_refused(device):
    params = make_params(device, size(device))
    optimizer = optim.AdamW(params, lr=0.1)
    with pytest.raises(CaptureError, match="first step"), Graph(device).capture():
        optimizer.step()
    with pytest.raises(CaptureError, match="max_grad_norm"), Graph(device).capture():
        rlx_gpu.l2_norm(params[0].grad)
    optimizer.step()
    assert {state["step"].item() for state in optimizer.state.values()} == {1.0}
