"""Matrices that take the fallback of a matrix optimizer because the caller names them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rlx_gpu import reference
from rlx_gpu.reference import algorithms
from rlx_gpu.reference.matrices import has_fallback

MATRIX = [name for name in sorted(algorithms()) if has_fallback(algorithms()[name])]


def make(name, **options):
    return getattr(reference, name)(**{"lr": 0.05, "weight_decay": 0.1, **options})


def batch(seed=0, dtype=np.float64):
    """Items of three parameters and shapes."""
    rng = np.random.default_rng(seed)
    shapes = {"bias": (4,), "weight": (4, 6), "scale": ()}
    return [
        (name, shape, np.array(rng.normal(size=shape), dtype), np.array(rng.normal(size=shape), dtype))
        for name, shape in shapes.items()
    ]


def assert_same_state(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert_array_equal(actual[key], value, err_msg=key)


class Embedded(reference.Muon):
    """A subclass with its own choice."""

    def use_fallback(self, name):
        return name == "weight"


@pytest.mark.parametrize("given", [["weight"], {"weight", "head"}, lambda name: name == "weight"], ids=type)
@pytest.mark.parametrize("name", MATRIX)
def test_use_fallback(name, given):
    """The named matrix gets what matrix=False gives all of them, and the others are as before."""
    named, none, all_of_them = make(name, use_fallback=given), make(name), make(name, matrix=False)
    params = [[*batch(), ("other", (4, 6), *(x.copy() for x in batch(1)[1][2:]))] for _ in range(3)]
    for _ in range(2):
        for optimizer, items in zip((named, none, all_of_them), params, strict=True):
            optimizer.step_batch(items)
            optimizer.end_iteration()
    for item, plain, fallback in zip(*params, strict=True):
        assert_array_equal(item[2], (fallback if item[0] == "weight" else plain)[2])
    assert np.any(params[0][1][2] != params[1][1][2])
    state = named.state_dict()
    twin = make(name, use_fallback=given)
    twin.load_state_dict(state)
    assert_same_state(twin.state_dict(), state)
    with pytest.raises(ValueError, match=r"state dict: (missing|unknown) '\w+/other'"):
        make(name, matrix=False).load_state_dict(state)


def test_use_fallback_can_be_overridden():
    optimizer, items = Embedded(lr=0.05), batch()
    optimizer.step_batch(items)
    assert {"exp_avg/weight", "exp_avg_sq/weight"} < optimizer.state_dict().keys()


@pytest.mark.parametrize("value", ["weight", {"weight": True}, 3], ids=repr)
def test_bad_use_fallback(value):
    with pytest.raises(ValueError) as error:
        make("Muon", use_fallback=value)
    assert str(error.value) == f"Muon: use_fallback must be a collection of names, a callable or None, got {value!r}"


def test_use_fallback_is_for_matrix_optimizers():
    with pytest.raises(TypeError, match="AdamW: use_fallback is for optimizers of matrices"):
        make("AdamW", use_fallback=["weight"])
