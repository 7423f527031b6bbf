"""Faults seen in other optimizer libraries, each with the test that would have found it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from snapshots import assert_close_states, bits, make_params, take_steps
from variants import BASE, OPTIMIZERS, VARIANTS

import rlx_gpu
from rlx_gpu import TABLE, optim, reference


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_moves_bfloat16_weights(name, path):
    """Seen: decay vanishes in bfloat16, where 0.999 rounds back to 1. Stochastic rounding keeps it in the mean."""
    hyper, steps = {"lr": 1e-3, "weight_decay": 1.0}, 20
    param = torch.nn.Parameter(torch.ones(1024, dtype=torch.bfloat16))
    oracle, exact = getattr(reference, name)(**hyper), np.ones(1024)
    optimizer = getattr(optim, name)([param], **hyper, rounding="stochastic", seed=1)
    param.grad = torch.zeros_like(param)
    for _ in range(steps):
        optimizer.step()
        oracle.step("p", (1024,), exact, np.zeros(1024))
        oracle.end_iteration()
    # Every step moves a value by 1/256 or not at all: σ = √(20·0.25)/256/√1024 = 3e-4.
    assert param.float().mean().item() == pytest.approx(exact.mean(), abs=1.5e-3)
    assert exact.mean() < 1 - 4e-3


def test_nearest_rounding_loses_that_decay(path):
    """The control: what the test above tells apart."""
    param = torch.nn.Parameter(torch.ones(1024, dtype=torch.bfloat16))
    optimizer = optim.AdamW([param], lr=1e-3, weight_decay=1.0)
    param.grad = torch.zeros_like(param)
    for _ in range(3):
        optimizer.step()
    assert (param == 1).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_slots_gradients_and_parameters_never_share_memory(variant, path):
    """Seen: a momentum buffer that is the gradient, or is overwritten by the update."""
    params = make_params()
    name, hyper = VARIANTS[variant]
    optimizer = getattr(optim, name)(params, **hyper)
    take_steps(optimizer, params, range(2))
    tensors = [t for p in params for t in (p, p.grad, *optimizer.state[p].values())]
    places = sorted((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))


@pytest.mark.parametrize("variant", ["SGD(momentum=0.9, dampening=0.9)", "SGD(momentum=0.9, nesterov=True)"])
def test_the_momentum_buffer_is_not_normalised_in_place(variant, path):
    """Seen: with nesterov=False the update aliases the buffer. Here b after two steps is what the formula says."""
    param = torch.nn.Parameter(torch.zeros(3))
    _, hyper = VARIANTS[variant]
    optimizer = optim.SGD([param], **{**hyper, "weight_decay": 0.0})
    for _ in range(2):
        param.grad = torch.ones(3)
        optimizer.step()
    expected = 0.9 + 1.0 - hyper.get("dampening", 0.0)
    torch.testing.assert_close(optimizer.state[param]["momentum_buffer"], torch.full((3,), expected))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_counter_is_in_the_checkpoint(variant, path):
    """Seen: schedules and running products that start over. All that a step reads is saved."""
    name, hyper = VARIANTS[variant]
    params = make_params()
    optimizer = getattr(optim, name)(params, **hyper)
    take_steps(optimizer, params, range(3))
    kept = {"step", *TABLE[name].reference.init_state((4, 6), **hyper)}
    assert set(optimizer.state_dict()["state"][0]) == kept


def test_the_index_that_keys_random_bits_is_wider_than_32_bits(path):
    """Seen: int32 sizes. The trait places parameters a multiple of 2³² elements apart; they still draw other bits."""
    optimizer = rlx_gpu.SGD(lr=1e-3, weight_decay=1.0, rounding="stochastic")
    params = {name: torch.ones(256, dtype=torch.bfloat16) for name in ("one", "other")}
    optimizer.step_batch([(name, (256,), param, torch.zeros_like(param)) for name, param in params.items()])
    assert bits(params["one"]) != bits(params["other"])


@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unaligned_views_are_not_read_as_vectors(name, offset, dtype, path):
    """Seen: 16-byte loads from an address that is not a multiple of 16, which read the neighbours."""
    buffer = torch.randn(1100).to(dtype)
    before = buffer.clone()
    view = torch.nn.Parameter(buffer[offset : offset + 1030])
    twin = torch.nn.Parameter(view.detach().clone())
    for param in (view, twin):
        optimizer = getattr(optim, name)([param], **BASE)
        take_steps(optimizer, [param], range(2))
    assert_close_states({"p": view}, {"p": twin})
    assert torch.equal(buffer[:offset], before[:offset])
    assert torch.equal(buffer[offset + 1030 :], before[offset + 1030 :])


def test_runs_repeat_to_the_bit_with_stochastic_rounding(path):
    """Seen: noise from a global generator, so that neither a rerun nor a resumed run repeats."""
    results = []
    for run in range(3):
        torch.manual_seed(run)
        params = make_params(torch.bfloat16)
        optimizer = optim.AdamW(params, **BASE, rounding="stochastic", seed=7 if run < 2 else 8)
        state = torch.get_rng_state()
        take_steps(optimizer, params, range(3))
        assert torch.equal(torch.get_rng_state(), state)
        results.append([bits(param) for param in params])
    assert results[0] == results[1] != results[2]
