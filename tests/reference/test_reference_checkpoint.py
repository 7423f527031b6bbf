"""State dicts: a resumed run goes on to the bit, and a wrong state is refused as a whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rlx_gpu import reference
from rlx_gpu.reference import algorithms

ALL = sorted(algorithms())
OPTIONS = {"SGD": {"momentum": 0.9}, "Adam": {"amsgrad": True}, "NAdamW": {"momentum_decay": 0.004}}
SHAPES = {"bias": (4,), "block/0.weight": (4, 6), "scale": (), "empty": (0, 2)}


def make(name, **options):
    return getattr(reference, name)(**{"lr": 0.05, "weight_decay": 0.1, **OPTIONS.get(name, {}), **options})


def train(optimizer, params, iterations):
    """Step on gradients that depend on the iteration alone."""
    for iteration in iterations:
        rng = np.random.default_rng(iteration)
        optimizer.step_batch([(n, p.shape, p, np.asarray(rng.normal(size=p.shape))) for n, p in params.items()])
        optimizer.end_iteration()


def parameters():
    return {name: np.ones(shape) for name, shape in SHAPES.items()}


def trained(name, **options):
    optimizer = make(name, **options)
    train(optimizer, parameters(), range(3))
    return optimizer


def assert_same_state(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert_array_equal(actual[key], value, err_msg=key)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", ALL)
def test_a_resumed_run_is_bit_identical(name, dtype):
    through, halves = parameters(), parameters()
    train(make(name, state_dtype=dtype), through, range(6))
    first, second = make(name, state_dtype=dtype), make(name, state_dtype=dtype)
    train(first, halves, range(3))
    file = io.BytesIO()
    np.savez(file, **first.state_dict())
    file.seek(0)
    second.load_state_dict(np.load(file))
    assert_same_state(second.state_dict(), first.state_dict())
    train(second, halves, range(3, 6))
    for key, value in through.items():
        assert_array_equal(halves[key], value)


@pytest.mark.parametrize("name", ALL)
def test_state_dict_keys_and_copies(name):
    optimizer = trained(name)
    state = optimizer.state_dict()
    expected = {"optimizer", "iteration"}
    for parameter, shape in SHAPES.items():
        slots = algorithms()[name].init_state(shape, **optimizer.hyper)
        expected |= {f"{slot}/{parameter}" for slot in (*slots, "step")}
    assert state.keys() == expected
    assert (state["optimizer"], state["iteration"], state["step/bias"]) == (name, 3, 3)
    twin = make(name)
    twin.load_state_dict(state)
    for value in state.values():
        if isinstance(value, np.ndarray):
            value[...] = 99.0
    assert_same_state(twin.state_dict(), optimizer.state_dict())
    assert not any(np.any(value == 99.0) for value in optimizer.state_dict().values() if isinstance(value, np.ndarray))


def refused(name, state, message, *, fresh):
    """Loading raises, and leaves the optimizer as it was."""
    optimizer = make(name) if fresh else trained(name)
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert_same_state(optimizer.state_dict(), before)


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "used"])
@pytest.mark.parametrize("name", ALL)
def test_missing_keys_are_named(name, fresh):
    state = trained(name).state_dict()
    for key in state:
        refused(name, {k: v for k, v in state.items() if k != key}, f"missing '{key}'", fresh=fresh)


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "used"])
@pytest.mark.parametrize("name", ALL)
def test_wrong_shapes_are_named(name, fresh):
    state = trained(name).state_dict()
    for key, value in state.items():
        if isinstance(value, np.ndarray) and not _alone(key, state, fresh):
            refused(name, {**state, key: np.ones((*value.shape, 2))}, key, fresh=fresh)


def _alone(key, state, fresh):
    """Whether a fresh optimizer has nothing to hold this slot's shape against until the parameter is stepped."""
    name = key.partition("/")[2]
    others = [k for k in state if k.partition("/")[2] == name and not k.startswith("step/")]
    return fresh and len(others) == 1


def test_a_shape_only_the_parameter_can_refute_is_refused_when_stepped():
    optimizer = make("Lion")
    optimizer.load_state_dict({**trained("Lion").state_dict(), "exp_avg/bias": np.ones(5)})
    with pytest.raises(ValueError, match=r"'bias': shape \(4,\) does not match its state's \(5,\)"):
        optimizer.step("bias", (4,), np.ones(4), np.ones(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "Adam"}, "'optimizer' is Adam, this is AdamW"),
        ({"hessian/bias": np.ones(4)}, "unknown 'hessian/bias'"),
        ({"lr": 0.1}, "unknown key 'lr'"),
        ({"iteration": -1}, "'iteration' must be an integer from 0, got -1"),
        ({"step/bias": 1.5}, "'step/bias' must be an integer from 0, got 1.5"),
        ({"step/bias": "many"}, "'step/bias' must be an integer from 0, got 'many'"),
        ({"exp_avg/bias": "zeros"}, "'exp_avg/bias' must be an array of numbers, got str"),
        ({"exp_avg/other": np.ones(4)}, "missing 'exp_avg_sq/other'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "used"])
def test_wrong_entries_are_named(change, message, fresh):
    refused("AdamW", {**trained("AdamW").state_dict(), **change}, message, fresh=fresh)


@pytest.mark.parametrize("name", ALL)
def test_another_optimizers_state_is_refused(name):
    other = ALL[ALL.index(name) - 1]
    refused(name, trained(other).state_dict(), f"'optimizer' is {other}, this is {name}", fresh=False)


@pytest.mark.parametrize(
    ("name", "saved", "loaded", "message"),
    [
        ("Adam", {"amsgrad": False}, {"amsgrad": True}, "missing 'max_exp_avg_sq/"),
        ("Adam", {"amsgrad": True}, {"amsgrad": False}, "unknown 'max_exp_avg_sq/"),
        ("SGD", {"momentum": 0.0}, {"momentum": 0.9}, "missing 'momentum_buffer/"),
        ("NAdamW", {"momentum_decay": None}, {"momentum_decay": 0.1}, "missing 'mu_product/"),
    ],
    ids=["amsgrad-lost", "amsgrad-gained", "momentum", "momentum_decay"],
)
def test_another_variants_state_is_refused(name, saved, loaded, message):
    with pytest.raises(ValueError, match=message):
        make(name, **loaded).load_state_dict(trained(name, **saved).state_dict())


def test_loading_starts_an_iteration_afresh():
    optimizer, params = trained("AdamW"), parameters()
    state = optimizer.state_dict()
    item = ("bias", (4,), params["bias"], np.ones(4))
    optimizer.step(*item)
    optimizer.load_state_dict(state)
    optimizer.step(*item)
    assert optimizer.state_dict()["step/bias"] == 4
