"""Hyperparameters: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from rlx_gpu import reference
from rlx_gpu.reference import algorithms
from rlx_gpu.reference.hyper import REQUIRED, Hyper, resolve

# (optimizer, hyperparameter, refused values, range in the message); each optimizer's defaults are optimizers.md's.
NONE, NAN, INF = None, float("nan"), float("inf")
REFUSED = [
    *[(name, "lr", [-1e-9, NAN, INF, True, "0.1", 1j, [0.1], np.ones(1)], "[0, inf)") for name in algorithms()],
    *[(name, "lr", [NONE], "[0, inf)") for name in algorithms() if name != "Adafactor"],
    *[(name, "weight_decay", [-0.1, NAN, INF, None], "[0, inf)") for name in algorithms()],
    *[
        (name, "betas", [(1.0, 0.9), (0.9, 1.5), (-0.1, 0.9), (NAN, 0.9), 0.9, (0.9,), (0.9, 0.9, 0.9), "ab"], "[0, 1)")
        for name in algorithms()
        if name not in ("SGD", "Adafactor")
    ],
    *[
        (name, "eps", [-1e-8, NAN, INF, (1e-8, 1e-8)], "[0, inf)")
        for name in ("Adam", "AdamW", "NAdamW", "RAdam", "QHAdamW", "Sophia", "LAMB", "MARS")
    ],
    ("SGD", "momentum", [-0.1, 1.0], "[0, 1)"),
    ("SGD", "dampening", [-0.1, 1.1], "[0, 1]"),
    ("SGD", "nesterov", [1, "yes", None], "True or False"),
    ("Adam", "amsgrad", [0, 1.0], "True or False"),
    ("AdamW", "amsgrad", [0, 1.0], "True or False"),
    ("NAdamW", "momentum_decay", [-0.1, NAN, False], "[0, inf) or None"),
    ("QHAdamW", "nus", [(1.1, 1.0), (0.7, -0.1)], "[0, 1]"),
    ("Sophia", "gamma", [-0.01], "[0, inf)"),
    ("Sophia", "rho", [0.0, -1.0], "(0, inf)"),
    ("LAMB", "bias_correction", [None, 1], "True or False"),
    ("MARS", "gamma", [-0.1], "[0, inf)"),
    ("MARS", "clip_c", [1], "True or False"),
    ("Adafactor", "beta2_decay", [0.1, -INF], "(-inf, 0]"),
    ("Adafactor", "eps", [1e-8, (1e-30, -1e-3)], "[0, inf)"),
    ("Adafactor", "clip_threshold", [0.0], "(0, inf)"),
]
DEFAULTS = {
    "SGD": {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0},
    "Adam": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False},
    "AdamW": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False},
    "NAdamW": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "momentum_decay": None},
    "RAdam": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "QHAdamW": {"betas": (0.995, 0.999), "nus": (0.7, 1.0), "eps": 1e-8, "weight_decay": 0.01},
    "Lion": {"betas": (0.9, 0.99), "weight_decay": 0.0},
    "Sophia": {"betas": (0.965, 0.99), "gamma": 0.01, "rho": 0.04, "eps": 1e-12, "weight_decay": 0.1},
    "LAMB": {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01, "bias_correction": True},
    "MARS": {"betas": (0.95, 0.99), "eps": 1e-8, "weight_decay": 0.0, "gamma": 0.025, "clip_c": True},
    "Adafactor": {"beta2_decay": -0.8, "eps": (1e-30, 1e-3), "clip_threshold": 1.0, "weight_decay": 0.0},
}


@pytest.mark.parametrize(
    ("optimizer", "name", "value", "allowed"),
    [
        pytest.param(optimizer, name, value, allowed, id=f"{optimizer}-{name}-{value}")
        for optimizer, name, values, allowed in REFUSED
        for value in values
    ],
)
def test_refused_values_name_hyperparameter_value_and_range(optimizer, name, value, allowed):
    with pytest.raises(ValueError) as refusal:
        getattr(reference, optimizer)(**{"lr": 0.1, name: value})
    message = str(refusal.value)
    assert message.startswith(f"{optimizer}: {name}")
    assert allowed in message
    assert str(next((v for v in value if not 0 <= v < 1), value) if isinstance(value, tuple) else value) in message


def test_message_for_an_element_of_a_pair():
    with pytest.raises(ValueError, match=r"^AdamW: betas\[0\] must be in \[0, 1\), got 1\.5$"):
        reference.AdamW(lr=0.1, betas=(1.5, 0.9))


@pytest.mark.parametrize("optimizer", sorted(DEFAULTS))
def test_defaults(optimizer):
    expected = {"lr": 0.1, **DEFAULTS[optimizer]}
    assert resolve(algorithms()[optimizer].HYPERPARAMETERS, {"lr": 0.1}, optimizer) == expected
    assert set(DEFAULTS) == set(algorithms())


@pytest.mark.parametrize("optimizer", sorted(DEFAULTS))
def test_every_declaration_is_documented_and_its_default_allowed(optimizer):
    for hyper in algorithms()[optimizer].HYPERPARAMETERS:
        assert hyper.doc
        assert hyper.default is REQUIRED or hyper.check(hyper.default) == hyper.default


@pytest.mark.parametrize("optimizer", sorted(set(DEFAULTS) - {"Adafactor"}))
def test_lr_is_required(optimizer):
    with pytest.raises(TypeError, match=f"{optimizer}: missing required hyperparameter 'lr'"):
        getattr(reference, optimizer)()


def test_adafactor_needs_no_lr():
    assert reference.Adafactor().hyper["lr"] is None


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.int64(1), np.array(1.0), Fraction(1)], ids=repr)
def test_numbers_become_floats(value):
    checked = Hyper("x").check(value)
    assert type(checked) is float
    assert checked == 1.0


def test_torch_scalars_become_floats():
    torch = pytest.importorskip("torch")
    assert Hyper("x").check(torch.tensor(0.5)) == 0.5
    with pytest.raises(ValueError, match="x must be a number"):
        Hyper("x").check(torch.ones(1))


def test_pairs_become_tuples_of_floats():
    checked = Hyper("x", kind="pair").check([1, np.float32(0.5)])
    assert checked == (1.0, 0.5)
    assert [type(checked), *map(type, checked)] == [tuple, float, float]


def test_bools_become_bools():
    assert Hyper("x", kind="bool").check(np.True_) is True


def test_huge_integer_is_a_clear_error():
    with pytest.raises(ValueError, match="x must be a number"):
        Hyper("x").check(10**400)


def test_unknown_hyperparameter_suggests_the_closest_and_lists_all():
    with pytest.raises(TypeError) as error:
        reference.AdamW(lr=0.1, beta=(0.9, 0.99))
    assert str(error.value) == (
        "AdamW: unknown hyperparameter 'beta' (did you mean 'betas'?); it takes lr, betas, eps, weight_decay, amsgrad"
    )


@pytest.mark.parametrize("given", [{}, {"momentum": 0.9, "dampening": 0.5}], ids=["no-momentum", "dampened"])
def test_nesterov_needs_undamped_momentum(given):
    with pytest.raises(ValueError, match=r"SGD: nesterov .* got momentum=0\.\d, dampening=0\.\d"):
        reference.SGD(lr=0.1, nesterov=True, **given)
