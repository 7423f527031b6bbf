"""The state that each optimizer keeps: names, shapes and first values."""

from __future__ import annotations

import pytest
from numpy.testing import assert_array_equal

from rlx_gpu.reference import algorithms
from rlx_gpu.reference.hyper import resolve


@pytest.mark.parametrize(
    ("name", "shape", "given", "slots"),
    [
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
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_slots(name, shape, given, slots):
    algorithm = algorithms()[name]
    state = algorithm.init_state(shape, **resolve(algorithm.HYPERPARAMETERS, {"lr": 0.1, **given}, name))
    assert {slot: value.shape for slot, value in state.items()} == slots
    for slot, value in state.items():
        assert_array_equal(value, 1.0 if slot == "mu_product" else 0.0)
