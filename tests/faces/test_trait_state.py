"""The trait's state: keys, round trips, exchange with the reference, and refusals that change nothing."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from snapshots import SHAPES, assert_close_states, assert_same, bits, snapshot
from test_trait import arrays, as_arrays, make, run
from variants import OPTIMIZERS, VARIANTS

from rlx_gpu import reference


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_is_bit_identical(variant, state_dtype, path):
    params = arrays(0)
    optimizer = make(variant, state_dtype=state_dtype)
    run(optimizer, params, range(2))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    fresh, resumed = make(variant), copy.deepcopy(params)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert_same(snapshot(fresh, resumed), snapshot(optimizer, params))
    for one, own in ((optimizer, params), (fresh, resumed)):
        run(one, own, range(2, 4))
    assert_same(snapshot(fresh, resumed), snapshot(optimizer, params))
    algorithm = type(fresh).algorithm.reference
    wide = dict.fromkeys(getattr(algorithm, "FULL_PRECISION_SLOTS", ()), torch.float32)
    wide |= dict.fromkeys(getattr(algorithm, "SCALAR_SLOTS", ()), torch.float64)
    slots = {key: value for key, value in fresh.state_dict().items() if isinstance(value, torch.Tensor)}
    for key, value in slots.items():
        assert value.dtype == wide.get(key.partition("/")[0], getattr(torch, state_dtype)), key


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_references_state_loads_here(variant, path):
    expected = arrays(0)
    theirs = make(variant, reference)
    run(theirs, expected, range(2))
    own, ours = copy.deepcopy(expected), make(variant)
    ours.load_state_dict(theirs.state_dict())
    run(theirs, expected, range(2, 4))
    run(ours, own, range(2, 4))
    assert_close_states(own, expected)
    assert ours.state_dict()["step/weight"] == 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_state_loads_in_the_reference(variant, path):
    own = arrays(0)
    ours = make(variant)
    run(ours, own, range(2))
    expected, theirs = copy.deepcopy(own), make(variant, reference)
    theirs.load_state_dict(as_arrays(ours.state_dict()))
    run(ours, own, range(2, 4))
    run(theirs, expected, range(2, 4))
    assert_close_states(own, expected)


def test_a_state_from_numpys_files_loads(path, tmp_path):
    """Numbers and strings come back as 0-d arrays."""
    params = arrays(0)
    optimizer = make("NAdamW(momentum_decay=0.9)", rounding="stochastic", seed=5)
    run(optimizer, params, range(2))
    np.savez(tmp_path / "state.npz", **as_arrays(optimizer.state_dict()))
    fresh = make("NAdamW(momentum_decay=0.9)")
    with np.load(tmp_path / "state.npz") as file:
        fresh.load_state_dict(dict(file))
    assert_same(snapshot(fresh, params), snapshot(optimizer, params))


def test_a_loaded_state_waits_for_its_parameter(path):
    """A parameter that is not stepped after loading is still in the next checkpoint."""
    params = arrays(0)
    optimizer = make("AdamW")
    run(optimizer, params, range(2))
    fresh = make("AdamW")
    fresh.load_state_dict(optimizer.state_dict())
    run(fresh, {"bias": params["bias"]}, [2])
    saved = fresh.state_dict()
    assert [saved[f"step/{name}"] for name in SHAPES] == [2, 3, 2]
    assert torch.equal(saved["exp_avg/weight"], optimizer.state_dict()["exp_avg/weight"])


def test_the_state_dict_is_a_copy(path):
    params = arrays(0)
    optimizer = make("AdamW")
    run(optimizer, params, [0])
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    run(optimizer, params, [1])
    assert_same(bits_of(saved), bits_of(before))
    optimizer.load_state_dict(saved)
    run(optimizer, params, [1])
    assert_same(bits_of(saved), bits_of(before))


def bits_of(state):
    return {key: bits(value) for key, value in state.items()}


BROKEN = {
    "another optimizer": (lambda s: s | {"optimizer": "Lion"}, r"'optimizer' is Lion, this is AdamW"),
    "no optimizer": (lambda s: {k: v for k, v in s.items() if k != "optimizer"}, r"missing 'optimizer'"),
    "no iteration": (lambda s: {k: v for k, v in s.items() if k != "iteration"}, r"missing 'iteration'"),
    "a slot is missing": (lambda s: {k: v for k, v in s.items() if k != "exp_avg/bias"}, r"missing 'exp_avg/bias'"),
    "a step is missing": (lambda s: {k: v for k, v in s.items() if k != "step/bias"}, r"missing 'step/bias'"),
    "an unknown slot": (lambda s: s | {"momentum_buffer/bias": torch.zeros(5)}, r"unknown 'momentum_buffer/bias'"),
    "an unknown key": (lambda s: s | {"nonsense": 1}, r"unknown key 'nonsense'"),
    "a wrong shape": (
        lambda s: s | {"exp_avg/bias": torch.zeros(6)},
        r"'exp_avg/bias' has shape \(6,\), expected \(5,\)",
    ),
    "a negative step": (lambda s: s | {"step/bias": -1}, r"'step/bias' must be an integer from 0, got -1"),
    "a slot that is text": (lambda s: s | {"exp_avg/bias": "zeros"}, r"'exp_avg/bias'"),
    "a rounding that is none": (lambda s: s | {"rounding": "up"}, r"rounding must be one of .*got 'up'"),
    "a seed that is none": (lambda s: s | {"seed": -3}, r"seed must be an integer .*got -3"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_state_changes_nothing(fault, path):
    breaking, message = BROKEN[fault]
    params = arrays(0)
    optimizer = make("AdamW")
    run(optimizer, params, range(2))
    before = snapshot(optimizer, params)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(breaking(optimizer.state_dict()))
    assert_same(snapshot(optimizer, params), before)
    run(optimizer, params, [2])


def test_a_loaded_state_of_another_shape_is_refused_at_the_step(path):
    """A fresh optimizer learns a parameter's shape only when it sees it."""
    params = arrays(0)
    optimizer = make("AdamW")
    run(optimizer, params, [0])
    fresh = make("AdamW")
    fresh.load_state_dict(optimizer.state_dict())
    before = snapshot(fresh, params)
    with pytest.raises(ValueError, match=r"'exp_avg/bias' has shape \(5,\), expected \(7,\)"):
        fresh.step("bias", (7,), np.ones(7, np.float32), np.ones(7, np.float32))
    assert_same(snapshot(fresh, params), before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_other_optimizer_takes_it(name):
    optimizer = make(name)
    run(optimizer, arrays(0), [0])
    for other in OPTIMIZERS:
        if other != name:
            with pytest.raises(ValueError, match=rf"'optimizer' is {name}, this is {other}"):
                make(other).load_state_dict(optimizer.state_dict())
