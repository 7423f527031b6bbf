"""The state that each optimizer keeps: names, shapes, first values and formats."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rlx_gpu import reference
from rlx_gpu.parity.variants import variants
from rlx_gpu.reference import algorithms
from rlx_gpu.reference.formats import round_to
from rlx_gpu.reference.hyper import resolve
from rlx_gpu.table import TABLE

ADAM = {"exp_avg": (3,), "exp_avg_sq": (3,)}


def soap(shape, left, right):
    """SOAP's slots of a matrix."""
    sides = {"left_cov": left, "left_basis": left, "right_cov": right, "right_basis": right}
    return {"exp_avg": shape, "exp_avg_sq": shape, **sides, "phase": ()}


def kron(shape, left, right, batch=()):
    """KronPSGD's slots of a matrix."""
    bounds = {"left_lipschitz": batch, "right_lipschitz": batch}
    return {"exp_avg": shape, "left_factor": left, "right_factor": right, **bounds}


SLOTS = [
    ("SGD", (3,), {}, {}),
    ("SGD", (3,), {"momentum": 0.9}, {"momentum_buffer": (3,)}),
    ("Adam", (3,), {}, {"exp_avg": (3,), "exp_avg_sq": (3,)}),
    ("Adam", (3,), {"amsgrad": True}, {"exp_avg": (3,), "exp_avg_sq": (3,), "max_exp_avg_sq": (3,)}),
    ("AdamW", (3,), {"amsgrad": True}, {"exp_avg": (3,), "exp_avg_sq": (3,), "max_exp_avg_sq": (3,)}),
    ("NAdamW", (3,), {}, {"exp_avg": (3,), "exp_avg_sq": (3,)}),
    ("NAdamW", (3,), {"momentum_decay": 0.0}, {"exp_avg": (3,), "exp_avg_sq": (3,), "mu_product": ()}),
    ("RAdam", (3,), {}, {"exp_avg": (3,), "exp_avg_sq": (3,)}),
    ("QHAdamW", (3,), {}, {"exp_avg": (3,), "exp_avg_sq": (3,)}),
    ("Lion", (3,), {}, {"exp_avg": (3,)}),
    ("Sophia", (3,), {}, {"exp_avg": (3,), "hessian": (3,)}),
    ("LAMB", (3,), {}, {"exp_avg": (3,), "exp_avg_sq": (3,)}),
    ("MARS", (3,), {}, {"exp_avg": (3,), "exp_avg_sq": (3,), "last_grad": (3,)}),
    ("Adafactor", (3,), {}, {"variance": (3,)}),
    ("Adafactor", (3, 4), {}, {"row_var": (3,), "col_var": (4,)}),
    ("Adafactor", (3, 4, 5), {}, {"variance": (3, 4, 5)}),
    ("Muon", (3,), {}, ADAM),
    ("Muon", (3, 4), {}, {"momentum_buffer": (3, 4)}),
    ("Muon", (3,), {"fallback": "sgd"}, {"momentum_buffer": (3,)}),
    ("Muon", (3, 4), {"matrix": False}, {slot: (3, 4) for slot in ADAM}),
    ("Muon", (2, 3, 4), {"ndim_policy": "batch"}, {"momentum_buffer": (2, 3, 4)}),
    ("SOAP", (3,), {}, ADAM),
    ("SOAP", (3, 4), {}, soap((3, 4), (3, 3), (4, 4))),
    ("SOAP", (3, 4), {"max_precond_dim": 3}, soap((3, 4), (3, 3), (0, 0))),
    ("SOAP", (2, 3, 4), {"ndim_policy": "flatten"}, soap((2, 3, 4), (2, 2), (12, 12))),
    ("SOAP", (2, 3, 4), {"ndim_policy": "batch"}, soap((2, 3, 4), (2, 3, 3), (2, 4, 4))),
    ("SOAP", (2, 3, 4), {"ndim_policy": "batch", "max_precond_dim": 3}, soap((2, 3, 4), (2, 3, 3), (2, 0, 0))),
    ("KronPSGD", (3,), {}, {"exp_avg": (3,), "factor": (3,), "lipschitz": ()}),
    ("KronPSGD", (2, 3, 4), {}, {"exp_avg": (2, 3, 4), "factor": (2, 3, 4), "lipschitz": ()}),
    ("KronPSGD", (3, 4), {}, kron((3, 4), (3, 3), (4,))),
    ("KronPSGD", (2, 3, 4), {"ndim_policy": "flatten"}, kron((2, 3, 4), (2, 2), (12,))),
    ("KronPSGD", (2, 3, 4), {"ndim_policy": "batch"}, kron((2, 3, 4), (2, 3, 3), (2, 4), (2,))),
]


@pytest.mark.parametrize("name", sorted(algorithms()))
def test_the_documentation_names_every_slot(name):
    """In whatever variant; of these, some shapes and formats are written down above a second time."""
    text = inspect.getdoc(algorithms()[name].update).partition("State slots")[2].partition("\n\n")[0]
    documented = {slot for line in re.findall(r"^    ([\w, ]+):", text, re.MULTILINE) for slot in line.split(", ")}
    kept = {
        slot
        for variant in variants(TABLE[name])
        for shape in ((), (3,), (3, 4), (2, 3, 4))
        for slot in algorithms()[name].init_state(shape, **TABLE[name].resolve(variant.hyper))
    }
    assert documented == kept


@pytest.mark.parametrize(
    ("name", "shape", "given", "slots"),
    SLOTS,
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_slots(name, shape, given, slots):
    algorithm = algorithms()[name]
    state = algorithm.init_state(shape, **resolve(algorithm.HYPERPARAMETERS, {"lr": 0.1, **given}, name))
    assert {slot: value.shape for slot, value in state.items()} == slots
    for slot, value in state.items():
        assert_array_equal(value, 1.0 if slot == "mu_product" else 0.0)


@pytest.mark.parametrize(
    ("name", "given", "slots"),
    [
        ("SOAP", {}, ["left_cov", "right_cov", "left_basis", "right_basis"]),
        ("KronPSGD", {"max_precond_skew": 9.0}, ["left_lipschitz", "right_lipschitz"]),
    ],
    ids=["SOAP", "KronPSGD"],
)
def test_some_slots_never_go_below_float32(name, given, slots):
    """Rounded to float32 in a bfloat16 state, and really finer than bfloat16."""
    rng = np.random.default_rng(0)
    optimizer = getattr(reference, name)(lr=0.1, state_dtype="bfloat16", **given)
    optimizer.step("weight", (4, 6), rng.normal(size=(4, 6)), rng.normal(size=(4, 6)))
    state = optimizer.state_dict()
    for slot in slots:
        value = state[f"{slot}/weight"]
        assert_array_equal(value, round_to(value, "float32"))
        assert np.any(value != round_to(value, "bfloat16"))
    assert_array_equal(state["exp_avg/weight"], round_to(state["exp_avg/weight"], "bfloat16"))
