"""NaN and infinity in a gradient: propagated like the reference's or, on request, a step as if it never was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from snapshots import SHAPES, assert_close_states, assert_same, make_params, set_grads, snapshot, take_steps
from test_trait import arrays, make, run
from variants import VARIANTS

from rlx_gpu import optim, reference

BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}


def make_torch(variant, params, **more):
    name, hyper = VARIANTS[variant]
    return getattr(optim, name)(params, **{**hyper, **more})


def step_with(optimizer, params, seed, value, which=1):
    """A step in which one element of one gradient is this value."""
    set_grads(params, seed)
    params[which].grad.view(-1)[-1] = value
    optimizer.step()


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_propagates_like_the_reference(variant, value, path):
    """The same elements become NaN or infinite, the others stay right."""
    own, expected = arrays(0), arrays(0)
    ours, theirs = make(variant), make(variant, reference)
    for optimizer, params in ((ours, own), (theirs, expected)):
        run(optimizer, params, [0])
        grads = arrays(101)
        grads["weight"][1, 2] = BAD[value]
        optimizer.step_batch([(name, SHAPES[name], params[name], grads[name]) for name in SHAPES])
        optimizer.end_iteration()
        run(optimizer, params, [2])
    for name in SHAPES:
        np.testing.assert_array_equal(np.isfinite(own[name]), np.isfinite(expected[name]), err_msg=name)
        np.testing.assert_allclose(own[name], expected[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_skipped_step_changes_no_bit(variant, path):
    params = make_params()
    optimizer = make_torch(variant, params, skip_nonfinite=True)
    step_with(optimizer, params, 0, BAD["nan"])  # the very first step, too
    assert_same(snapshot(optimizer, params), snapshot_of_fresh(variant, optimizer))
    take_steps(optimizer, params, [1])
    before = snapshot(optimizer, params)
    for which, value in enumerate(BAD.values()):
        step_with(optimizer, params, 2, value, which)
        assert_same(snapshot(optimizer, params), before)


def snapshot_of_fresh(variant, optimizer):
    """What an optimizer looks like whose state was allocated, but that never stepped."""
    params = make_params()
    fresh = make_torch(variant, params)
    twins = [param for group in optimizer.param_groups for param in group["params"]]
    for param, twin in zip(params, twins, strict=True):
        for slot, value in optimizer.state[twin].items():
            fresh.state[param][slot] = torch.full_like(value, 1.0 if slot == "mu_product" else 0.0)
    return snapshot(fresh, params)


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_after_a_skipped_one_are_as_if_it_never_was(variant, path):
    own, expected = make_params(), make_params()
    guarded, plain = make_torch(variant, own, skip_nonfinite=True), make_torch(variant, expected)
    for seed, value in enumerate((0.5, BAD["nan"], BAD["inf"], 0.5, BAD["nan"], 0.5)):
        step_with(guarded, own, seed, value)
        if np.isfinite(value):
            step_with(plain, expected, seed, value)
    assert_same(snapshot(guarded, own), snapshot(plain, expected))


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_bits_follow_the_steps_that_were_made(variant):
    own, expected = make_params(torch.bfloat16), make_params(torch.bfloat16)
    options = {"rounding": "stochastic", "seed": 3}
    guarded = make_torch(variant, own, skip_nonfinite=True, **options)
    plain = make_torch(variant, expected, **options)
    values = [0.5, BAD["nan"], 0.5, BAD["inf"], BAD["nan"], 0.5, 0.5]
    for seed, value in enumerate(values):
        step_with(guarded, own, seed, value)
        if np.isfinite(value):
            step_with(plain, expected, seed, value)
    assert_same(snapshot(guarded, own), snapshot(plain, expected))


def test_a_new_set_of_parameters_after_a_skipped_step(path):
    """A gradient that appears has a state made for it."""
    own, expected = make_params(), make_params()
    guarded, plain = make_torch("AdamW", own, skip_nonfinite=True), make_torch("AdamW", expected)
    for optimizer, params in ((guarded, own), (plain, expected)):
        for seed in range(2):
            set_grads(params, seed)
            params[2].grad = None
            optimizer.step()
        if optimizer is guarded:
            step_with(optimizer, params[:2], 2, BAD["nan"])
        take_steps(optimizer, params, [3, 4])
    assert_same(snapshot(guarded, own), snapshot(plain, expected))


@pytest.mark.parametrize("variant", ["AdamW", "LAMB", "Adafactor", "NAdamW(momentum_decay=0.9)"])
def test_the_trait_skips_a_whole_batch(variant, path):
    own, expected = arrays(0), arrays(0)
    ours, theirs = make(variant, skip_nonfinite=True), make(variant, reference, skip_nonfinite=True)
    for optimizer, params in ((ours, own), (theirs, expected)):
        run(optimizer, params, [0])
        before = {name: param.copy() for name, param in params.items()}
        grads = arrays(101)
        grads["bias"][0] = np.nan
        items = [(name, SHAPES[name], params[name], grads[name]) for name in SHAPES]
        optimizer.step_batch(items)
        for name in SHAPES:
            np.testing.assert_array_equal(params[name], before[name])
        with pytest.raises(ValueError, match="stepped twice"):
            optimizer.step_batch(items)
        optimizer.end_iteration()
        run(optimizer, params, [2])
    assert_close_states(own, expected)
    assert [ours.state_dict()[f"step/{name}"] for name in SHAPES] == [2, 2, 2]


def test_overflow_of_the_norm_is_no_reason_to_skip(path):
    """Only entries that are not finite count; a sum of squares beyond float32 does not."""
    param = [torch.nn.Parameter(torch.ones(4))]
    optimizer = make_torch("Lion", param, skip_nonfinite=True)
    param[0].grad = torch.full((4,), 1e30)
    optimizer.step()
    assert optimizer.state[param[0]]["step"] == 1


@pytest.mark.parametrize("variant", ["AdamW", "MARS"])
def test_grad_scale_and_skipping_together(variant, path):
    own, expected = make_params(), make_params()
    guarded, plain = make_torch(variant, own, skip_nonfinite=True), make_torch(variant, expected)
    for seed in range(2):
        for optimizer, params in ((guarded, own), (plain, expected)):
            set_grads(params, seed)
            optimizer.step(grad_scale=torch.tensor(0.5))
        set_grads(own, 7)
        own[0].grad[0, 0] = BAD["inf"]
        guarded.step(grad_scale=0.125)
    assert_same(snapshot(guarded, own), snapshot(plain, expected))
