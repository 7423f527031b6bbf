"""Tensors whose memory is not what they say, on the host: refused by name, never read."""

from __future__ import annotations

import pytest
import torch

import rlx_gpu
from rlx_gpu.engine.devices import stepped_on_host


def zeros(grad):
    return torch._efficientzerotensor(grad.shape)


def freed(grad):
    grad.untyped_storage().resize_(0)
    return grad


def cut(grad):
    grad = grad.clone()
    grad.untyped_storage().resize_(400)
    return grad


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [(zeros, "has no memory"), (freed, "has no memory"), (cut, "400 bytes"), (torch._neg_view, "lazily negated")],
)
def test_a_gradient(spoil, message, first):
    param = torch.nn.Parameter(torch.ones(1000))
    with stepped_on_host():
        optimizer = rlx_gpu.optim.AdamW([param], lr=0.1)
        if not first and spoil is not cut:  # whose storage is measured only where a plan is made
            param.grad = torch.ones(1000)
            optimizer.step()
        before = param.detach().clone()
        param.grad = spoil(torch.ones(1000))
        with pytest.raises((TypeError, ValueError), match=message):
            optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_a_parameter_that_was_freed(first):
    param = torch.nn.Parameter(torch.ones(1000))
    param.grad = torch.ones(1000)
    with stepped_on_host():
        optimizer = rlx_gpu.optim.AdamW([param], lr=0.1)
        if not first:
            optimizer.step()
        param.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="has no memory"):
            optimizer.step()


def test_subnormal_float16_where_a_thread_takes_subnormal_numbers_for_0():
    param = torch.nn.Parameter(torch.full((64,), 3e-5, dtype=torch.float16))
    param.grad = torch.full((64,), 2e-5, dtype=torch.float16)
    before = param.detach().clone()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        with stepped_on_host():
            optimizer = rlx_gpu.optim.AdamW([param], lr=0.0, weight_decay=0.0)
            optimizer.step()
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(param.view(torch.int16), before.view(torch.int16))
    assert optimizer.state[param]["exp_avg"].min() > 1.9e-6
