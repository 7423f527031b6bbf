"""torch's GradScaler: with `fused=True` steps unscale and skip by themselves, and otherwise it does so before them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from no_reads import NoReads
from snapshots import assert_same, make_params, set_grads, snapshot
from variants import SCHEDULED, VARIANTS

from rlx_gpu import optim
from rlx_gpu.engine.words import StepWords

BAD = (1, 4)  # steps with an infinity
STEPS = 6


def make(variant, params, **more):
    name, hyper = VARIANTS[variant]
    return getattr(optim, name)(params, **{**hyper, **more})


def scaler_of(**options):
    """One whose scale changes within a few steps; a power of two, so that scaling loses nothing."""
    scaler = torch.amp.GradScaler("cpu", **{"init_scale": 64.0, "growth_interval": 2, **options})
    scaler.scale(torch.zeros(()))
    return scaler


def scaled_step(optimizer, params, scaler, seed, bad=False, unscaled=False):
    """One step under a scaler, with an infinity if asked."""
    set_grads(params, seed)
    for param in params:
        param.grad *= scaler.get_scale()
    if bad:
        params[0].grad.view(-1)[2] = float("inf")
    if unscaled:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert not hasattr(optimizer, "grad_scale") and not hasattr(optimizer, "found_inf")
    scaler.update()


@pytest.mark.parametrize(("fused", "unscaled"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scaled_steps_are_steps(variant, fused, unscaled, path):
    """Parameters, state and counts are those without scaling, and the scale is as with torch's own optimizer."""
    own, other, torchs = make_params(), make_params(), make_params()
    ours, plain = make(variant, own, fused=fused), make(variant, other)
    scaler, expected = scaler_of(), scaler_of()
    model = torch.optim.AdamW(torchs, fused=True)
    for seed in range(STEPS):
        scaled_step(ours, own, scaler, seed, seed in BAD, unscaled)
        scaled_step(model, torchs, expected, seed, seed in BAD, unscaled)
        if seed not in BAD:
            set_grads(other, seed)
            plain.step()
        assert scaler.get_scale() == expected.get_scale()
    mine, wanted = snapshot(ours, own), snapshot(plain, other)
    assert mine.pop(("group", 0, "fused")) is fused
    assert_same(mine, wanted)


@pytest.mark.parametrize("variant", [variant for variant, (name, _) in VARIANTS.items() if name not in SCHEDULED])
def test_the_host_reads_nothing(variant):
    params = make_params()
    optimizer, scaler = make(variant, params, fused=True), scaler_of()
    for seed in range(3):
        set_grads(params, seed)
        if seed == 1:
            params[0].grad.view(-1)[2] = float("inf")
        with NoReads() if seed else torch.no_grad():
            scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("name", SCHEDULED)
def test_optimizers_whose_launches_depend_on_the_step_wait(name, monkeypatch):
    """But only where a step may be skipped."""
    asked = []
    real = StepWords.skips
    monkeypatch.setattr(StepWords, "skips", lambda words: asked.append(True) or real(words))
    params, scaler = make_params(), scaler_of()
    optimizer = getattr(optim, name)(params, lr=0.1, fused=True, max_grad_norm=1.0)
    set_grads(params, 0)
    optimizer.step()
    assert not asked
    scaled_step(optimizer, params, scaler, 1)
    assert asked


def test_our_factor_and_a_scale_of_ones_own_count_as_well(path):
    """`step(grad_scale=)` multiplies, the attribute divides, and torch multiplies a scale set before with its own."""
    own, other = make_params(), make_params()
    ours, plain = (optim.SGD(params, lr=0.1, fused=True) for params in (own, other))
    scaler = scaler_of(init_scale=16.0)
    for seed in range(2):
        for params in (own, other):
            set_grads(params, seed)
        if seed:
            ours.grad_scale = torch.tensor(2.0)
        scaler.step(ours, grad_scale=0.5)
        scaler.update()
        plain.step(grad_scale=0.5 / 16.0 / (2.0 if seed else 1.0))
    assert all(map(torch.equal, own, other))


def test_a_step_without_the_scaler_is_not_skipped_by_its_last(path):
    own, other = make_params(), make_params()
    ours, plain = (optim.Adam(params, lr=0.1, fused=True) for params in (own, other))
    scaler = scaler_of()
    scaled_step(ours, own, scaler, 0)
    scaled_step(ours, own, scaler, 1, bad=True)
    set_grads(own, 2)
    ours.step()
    for seed in (0, 2):
        set_grads(other, seed)
        plain.step()
    assert_same(snapshot(ours, own), snapshot(plain, other))


@pytest.mark.parametrize("scale", [3.0, 1000.0, 1.7e5])
def test_a_scale_that_is_no_power_of_two(scale):
    """The inverse is rounded as the scaler rounds it."""
    own, other = make_params(), make_params()
    ours, plain = (optim.SGD(params, lr=0.1, fused=fused) for params, fused in ((own, True), (other, False)))
    for seed in range(3):
        for optimizer, params in ((ours, own), (plain, other)):
            scaled_step(optimizer, params, scaler_of(init_scale=scale), seed)
    assert all(map(torch.equal, own, other))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_copies_take_it_along(copied):
    for fused in (True, False, None):
        optimizer = optim.AdamW(make_params(), lr=0.1, fused=fused)
        assert optimizer._step_supports_amp_scaling is copied(optimizer)._step_supports_amp_scaling is bool(fused)


def test_an_error_leaves_nothing_of_the_scaler_behind():
    """Which the error keeps from deleting what it has set; the next step would be divided by it."""
    own, other = make_params(), make_params()
    ours, plain = optim.SGD(own, lr=0.1, fused=True), optim.SGD(other, lr=0.1)
    scaler = scaler_of()
    set_grads(own, 0)
    ours.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be"):
        scaler.step(ours)
    assert not hasattr(ours, "grad_scale") and not hasattr(ours, "found_inf")
    ours.param_groups[0]["lr"] = 0.1
    for optimizer, params in ((ours, own), (plain, other)):
        set_grads(params, 1)
        optimizer.step()
    assert all(map(torch.equal, own, other))


@pytest.mark.parametrize(
    "value", [torch.ones(2), torch.ones((), device="meta"), torch.ones(1).to_sparse(), "2", 1j, True], ids=str
)
@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_what_is_no_number_is_refused(name, value):
    params = make_params()
    optimizer = optim.AdamW(params, lr=0.1, fused=True)
    set_grads(params, 0)
    setattr(optimizer, name, value)
    with pytest.raises(TypeError, match=f"the scaler's {name} must be a number or a real tensor of one element"):
        optimizer.step()
    assert not optimizer.state[params[0]]
