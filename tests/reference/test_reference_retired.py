"""Slots that states used to hold and no longer do: dropped where they agree with the step count, refused elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rlx_gpu import reference

SHAPES = {"bias": (4,), "weight": (4, 6), "empty": (0, 3)}
STEPS = 510  # the credit is no longer 0


def trained(name, steps=STEPS):
    optimizer = getattr(reference, name)(lr=0.05)
    for _ in range(steps):
        optimizer.step_batch([(key, shape, np.ones(shape), np.ones(shape)) for key, shape in SHAPES.items()])
        optimizer.end_iteration()
    return optimizer


def older(state, count, credit):
    """The state with the counters that KronPSGD's used to hold for each parameter."""
    counters = {f"update_count/{key}": np.array(float(count)) for key in SHAPES}
    return {**state, **counters, **{f"update_credit/{key}": np.array(credit) for key in SHAPES}}


@pytest.fixture(scope="module")
def state():
    return trained("KronPSGD").state_dict()


@pytest.fixture(scope="module")
def counters():
    """What a counter of the probabilities held."""
    credit, count = 0.0, 0
    for step in range(1, STEPS + 1):
        credit += min(float(np.exp(-0.001 * (step - 500))), 1.0)
        credit, count = (credit - 1, count + 1) if credit >= 1 else (credit, count)
    return count, credit


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "used"])
@pytest.mark.parametrize("empty", [0.0, 99.0])
@pytest.mark.parametrize("partly", [True, False], ids=["one slot", "both slots"])
def test_they_are_dropped_where_they_agree(state, counters, empty, partly, fresh):
    """The counters of an empty parameter stood still on some paths and not on others: they say nothing."""
    optimizer = reference.KronPSGD(lr=0.05) if fresh else trained("KronPSGD", 2)
    given = {**older(state, *counters), "update_count/empty": np.array(empty)}
    if partly:
        del given["update_credit/weight"]
    optimizer.load_state_dict(given)
    loaded = optimizer.state_dict()
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        assert_array_equal(loaded[key], value)


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "used"])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("update_count/weight", np.array(7.0), "is 7, at step 510 it must be 509"),
        ("update_count/bias", float("nan"), "is nan, at step 510 it must be 509"),
        ("update_credit/weight", np.array(0.25), r"is 0.25, at step 510 it must be 0.945\d+"),
        ("update_count/weight", "three", "must be an array of numbers, got str"),
        ("update_count/weight", np.ones(3), "must be one number, got array"),
    ],
    ids=["count", "nan", "credit", "string", "array"],
)
def test_others_are_refused_by_name(state, counters, key, value, message, fresh):
    optimizer = reference.KronPSGD(lr=0.05) if fresh else trained("KronPSGD", 2)
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=f"^state dict: '{key}' {message}"):
        optimizer.load_state_dict({**older(state, *counters), key: value})
    after = optimizer.state_dict()
    assert after.keys() == before.keys()
    for slot, kept in before.items():
        assert_array_equal(after[slot], kept)


def test_an_optimizer_that_never_had_them_refuses_them(counters):
    with pytest.raises(ValueError, match="unknown 'update_c"):
        trained("Lion", 1).load_state_dict(older(trained("Lion", 1).state_dict(), *counters))
