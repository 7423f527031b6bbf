"""torch.compile does not trace into a step: results are those without it, and nothing is compiled anew."""

from __future__ import annotations

import pytest
import torch
from snapshots import assert_same, make_params, set_grads, snapshot
from torch._dynamo.testing import CompileCounter
from variants import OPTIMIZERS, VARIANTS

import rlx_gpu
from rlx_gpu import optim

SHAPE = (4, 6)


@pytest.fixture
def counter():
    """Counts the graphs that torch compiles; to compile a second time is an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield CompileCounter()
    torch._dynamo.reset()


def make(variant, params):
    name, hyper = VARIANTS[variant]
    return getattr(optim, name)(params, **hyper)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_compiled_step(variant, counter, path):
    """While hyperparameters change and gradients come and go."""
    own, other = make_params(), make_params()
    ours, plain = make(variant, own), make(variant, other)
    compiled = torch.compile(ours.step, backend=counter)
    for seed in range(4):
        for optimizer, params, step in ((ours, own, compiled), (plain, other, plain.step)):
            set_grads(params, seed)
            params[seed % 3].grad = None
            optimizer.param_groups[0]["weight_decay"] = 0.1 * seed
            step()
    assert_same(snapshot(ours, own), snapshot(plain, other))
    assert counter.op_count == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_within_a_compiled_function(name, counter, path):
    """What is before and behind it is compiled once."""
    own, other = make_params(), make_params()
    ours, plain = (getattr(optim, name)(params, lr=0.1) for params in (own, other))

    def train():
        loss = sum(param.square().sum() for param in own)
        ours.step()
        return loss * 2.0

    compiled = torch.compile(train, backend=counter)
    for seed in range(3):
        for params in (own, other):
            set_grads(params, seed)
        wanted = 2.0 * sum(param.detach().square().sum() for param in other)
        torch.testing.assert_close(compiled().detach(), wanted)
        plain.step()
    assert_same(snapshot(ours, own), snapshot(plain, other))
    assert counter.frame_count == 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_trait(name, counter):
    ours, plain = (getattr(rlx_gpu, name)(lr=0.1) for _ in range(2))
    compiled = torch.compile(ours.step, backend=counter)
    params = [torch.ones(SHAPE) for _ in range(2)]
    for _ in range(3):
        grad = torch.randn(SHAPE)
        for optimizer, step, param in zip((ours, plain), (compiled, plain.step), params, strict=True):
            step("w", SHAPE, param, grad)
            optimizer.end_iteration()
    assert torch.equal(*params) and counter.frame_count == 0


def test_estimates(counter):
    params = make_params()
    optimizer = optim.Sophia(params, lr=0.1)
    set_grads(params, 0)
    optimizer.step()
    compiled = torch.compile(optimizer.update_hessian, backend=counter)
    for _ in range(3):
        compiled(params, [torch.ones_like(param) for param in params])
    assert counter.op_count == 0
