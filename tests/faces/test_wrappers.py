"""Tensors without memory of their own, DTensors above all, are refused by name wherever an address would be read."""

from __future__ import annotations

import pytest
import torch
from snapshots import assert_same, make_params, set_grads, snapshot, take_steps
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.testing._internal.two_tensor import TwoTensor

import rlx_gpu
from rlx_gpu import optim

NAMES = ["AdamW", "LAMB", "Adafactor", "Muon", "SOAP", "KronPSGD"]
SHAPE = (4, 6)


@pytest.fixture(scope="module")
def mesh():
    """Two ranks, of which the other is made up."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    torch.distributed.destroy_process_group()


class Opaque(torch.Tensor):
    """A wrapper that does not say what it wraps."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*(one.inner if isinstance(one, cls) else one for one in args), **(kwargs or {}))


@pytest.fixture(params=["DTensor", "TwoTensor"])
def wrapped(request, mesh):
    """A tensor that only wraps others, and what the refusal calls it."""
    if request.param == "DTensor":
        return distribute_tensor(torch.randn(SHAPE), mesh, [Shard(0)]), "is a DTensor, which is not supported: train"
    return TwoTensor(torch.randn(SHAPE), torch.randn(SHAPE)), "is a TwoTensor, a wrapper of tensors without memory"


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name, wrapped):
    tensor, words = wrapped
    with pytest.raises(TypeError, match=rf"parameter .*params.*\[0\].* {words}"):
        getattr(optim, name)([torch.nn.Parameter(tensor)], lr=0.1)
    optimizer = getattr(rlx_gpu, name)(lr=0.1)
    with pytest.raises(TypeError, match=f"parameter 'w' {words}"):
        optimizer.step("w", SHAPE, tensor, torch.randn(SHAPE))


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, steps, wrapped, path):
    """First ones and later ones; nothing has changed then, and the next step goes on."""
    tensor, words = wrapped
    params = [torch.nn.Parameter(torch.randn(SHAPE)) for _ in range(2)]
    optimizer = getattr(optim, name)(params, lr=0.1)
    take_steps(optimizer, params, range(steps))
    set_grads(params, 5)
    before = snapshot(optimizer, params)
    grads = [params[0].grad, tensor]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Parameter, "grad", property(lambda one: grads[one is params[1]]))
        with pytest.raises(TypeError, match=rf"params'\]\[1\].*: gradient {words}"):
            optimizer.step()
    assert_same(snapshot(optimizer, params), before)
    take_steps(optimizer, params, [5])
    assert {state["step"].item() for state in optimizer.state.values()} == {steps + 1}


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_trait(name, wrapped):
    tensor, words = wrapped
    optimizer, param = getattr(rlx_gpu, name)(lr=0.1), torch.randn(SHAPE)
    with pytest.raises(TypeError, match=f"parameter 'w': gradient {words}"):
        optimizer.step("w", SHAPE, param, tensor)


def test_estimates(wrapped):
    tensor, words = wrapped
    params = make_params()[:1]
    ours, trait = optim.Sophia(params, lr=0.1), rlx_gpu.Sophia(lr=0.1)
    take_steps(ours, params, [0])
    trait.step("w", SHAPE, torch.randn(SHAPE), torch.randn(SHAPE))
    with pytest.raises(TypeError, match=f"estimate {words}"):
        ours.update_hessian(params, [tensor])
    with pytest.raises(TypeError, match=f"parameter 'w': estimate {words}"):
        trait.update_hessian("w", tensor)


def test_norms_and_iterations(wrapped):
    tensor, words = wrapped
    for call in (
        lambda: rlx_gpu.l2_norm(tensor),
        lambda: rlx_gpu.global_grad_clip_scale([torch.ones(3), tensor], 1.0),
        lambda: rlx_gpu.newton_schulz(tensor),
    ):
        with pytest.raises(TypeError, match=words):
            call()


@pytest.mark.parametrize("wrap", [Opaque, lambda one: torch.nested.nested_tensor([one.reshape(1)])])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_scales_of_other_kinds(wrap):
    params = make_params()
    optimizer = optim.AdamW(params, lr=0.1)
    set_grads(params, 0)
    with pytest.raises(TypeError, match=r"grad_scale is a .*, a wrapper of tensors"):
        optimizer.step(grad_scale=wrap(torch.tensor(2.0)))


def test_scales_learning_rates_and_states(mesh):
    params = make_params()
    number = distribute_tensor(torch.tensor(0.5), mesh, [Replicate()])
    with pytest.raises(TypeError, match="lr is a DTensor"):
        optim.AdamW(params, lr=number)
    optimizer = optim.AdamW(params, lr=0.1)
    take_steps(optimizer, params, [0])
    before = snapshot(optimizer, params)
    with pytest.raises(TypeError, match="grad_scale is a DTensor"):
        optimizer.step(grad_scale=number)
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"] = distribute_tensor(saved["state"][0]["exp_avg"], mesh, [Shard(0)])
    with pytest.raises(ValueError, match=r"exp_avg/.* is a DTensor; gather it with full_tensor"):
        optimizer.load_state_dict(saved)
    assert_same(snapshot(optimizer, params), before)
    optimizer.state[params[0]]["exp_avg"] = saved["state"][0]["exp_avg"]
    with pytest.raises(TypeError, match="slot 'exp_avg' is a DTensor"):
        optimizer.step()
