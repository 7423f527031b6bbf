"""Hyperparameters: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from rlx_gpu import reference
from rlx_gpu.reference import algorithms
from rlx_gpu.reference.hyper import REQUIRED, Hyper, resolve, scaled

ALL = sorted(algorithms())
NONE, NAN, INF = None, float("nan"), float("inf")


def declaring(hyperparameter, *, but=()):
    """The optimizers that have this hyperparameter."""
    return [
        name
        for name, algorithm in algorithms().items()
        if name not in but and hyperparameter in {hyper.name for hyper in algorithm.HYPERPARAMETERS}
    ]


# (optimizer, hyperparameter, refused values, range in the message).
REFUSED = [
    *[(name, "lr", [-1e-9, NAN, INF, True, "0.1", 1j, [0.1], np.ones(1)], "[0, inf)") for name in algorithms()],
    *[(name, "lr", [NONE], "[0, inf)") for name in algorithms() if name != "Adafactor"],
    *[(name, "weight_decay", [-0.1, NAN, INF, None], "[0, inf)") for name in declaring("weight_decay")],
    *[
        (name, "betas", [(1.0, 0.9), (0.9, 1.5), (-0.1, 0.9), (NAN, 0.9), 0.9, (0.9,), (0.9, 0.9, 0.9), "ab"], "[0, 1)")
        for name in declaring("betas")
    ],
    *[
        (name, "eps", [-1e-8, NAN, INF, (1e-8, 1e-8)], "[0, inf)")
        for name in declaring("eps", but=("Adafactor", "Muon"))
    ],
    *[(name, "ndim_policy", ["rows", None, 2], "one of fallback, flatten, batch") for name in declaring("matrix")],
    *[(name, "matrix", [None, 1, "yes"], "True or False") for name in declaring("matrix")],
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
    ("Muon", "momentum", [-0.1, 1.0], "[0, 1)"),
    ("Muon", "nesterov", [1, None], "True or False"),
    ("Muon", "ns_coefficients", ["kellr", [], NONE, 5], "one of keller, quintic, polar_express, cans, or a list"),
    ("Muon", "ns_steps", [0, 101, 5.0, True, "5", NONE, np.ones(1)], "a whole number in [1, 100]"),
    ("Muon", "adjust_lr_fn", ["rms", NONE], "one of original, match_rms_adamw, unit_rms, spectral"),
    ("Muon", "eps", [0.0, -1e-7, INF], "(0, inf)"),
    ("Muon", "split_sizes", [[], 4, "44"], "a tuple of whole numbers in [1, inf) or None"),
    ("Muon", "ns_dtype", ["float64", NONE], "one of bfloat16, float16, float32"),
    ("Muon", "fallback", ["adam", NONE], "one of adamw, sgd"),
    ("Muon", "fallback_lr_scale", [-1.0, NAN, NONE], "[0, inf)"),
    ("Muon", "fallback_eps", [-1e-8], "[0, inf)"),
    ("SOAP", "shampoo_beta", [-0.1, 1.0, True], "[0, 1) or None"),
    ("SOAP", "precondition_frequency", [0, 1.0, NONE], "a whole number in [1, inf)"),
    ("SOAP", "max_precond_dim", [-1, 2.5], "a whole number in [0, inf)"),
    ("SOAP", "stagger", [NONE, 0], "True or False"),
    ("KronPSGD", "momentum", [-0.1, 1.0], "[0, 1)"),
    ("KronPSGD", "precond_lr", [-0.1, NAN], "[0, inf)"),
    ("KronPSGD", "precond_beta", [-0.1, 1.0], "[0, 1)"),
    ("KronPSGD", "clip_update_rms", [0.0, INF], "(0, inf)"),
    ("KronPSGD", "max_precond_dim", [-1, 2.5], "a whole number in [0, inf)"),
    ("KronPSGD", "max_precond_skew", [-1.0, INF], "[0, inf)"),
]
# Written down a second time, from papers and packages: a slip in a declaration, or a default that changes, fails here.
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
    "Muon": {
        "momentum": 0.95,
        "nesterov": True,
        "weight_decay": 0.0,
        "ns_coefficients": "keller",
        "ns_steps": 5,
        "adjust_lr_fn": "original",
        "eps": 1e-7,
        "ndim_policy": "fallback",
        "split_sizes": None,
        "ns_dtype": "bfloat16",
        "matrix": True,
        "fallback": "adamw",
        "fallback_lr_scale": 1.0,
        "betas": (0.9, 0.999),
        "fallback_eps": 1e-8,
    },
    "SOAP": {
        "betas": (0.95, 0.95),
        "shampoo_beta": None,
        "eps": 1e-8,
        "weight_decay": 0.01,
        "precondition_frequency": 10,
        "max_precond_dim": 10000,
        "ndim_policy": "fallback",
        "matrix": True,
        "stagger": True,
    },
    "KronPSGD": {
        "momentum": 0.9,
        "weight_decay": 0.0,
        "precond_lr": 0.1,
        "precond_beta": 0.9,
        "clip_update_rms": 1.1,
        "max_precond_dim": 8192,
        "max_precond_skew": 1.0,
        "ndim_policy": "fallback",
        "matrix": True,
    },
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


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ns_coefficients", [[1, 2]], "ns_coefficients[0] must be a triple of numbers in (-inf, inf), got [1, 2]"),
        ("ns_coefficients", [3.0, 1.0], "ns_coefficients[0] must be a triple of numbers in (-inf, inf), got 3.0"),
        ("ns_coefficients", [(1, 2, 3), (1, 2, NAN)], "ns_coefficients[1][2] must be in (-inf, inf), got nan"),
        ("ns_coefficients", [(1, "2", 3)], "ns_coefficients[0][1] must be a number in (-inf, inf), got '2'"),
        ("split_sizes", [4, 0], "split_sizes[1] must be a whole number in [1, inf), got 0"),
        ("split_sizes", (4, 2.0), "split_sizes[1] must be a whole number in [1, inf), got 2.0"),
        ("split_sizes", [True], "split_sizes[0] must be a whole number in [1, inf), got True"),
    ],
)
def test_message_for_an_element_of_a_list(name, value, message):
    with pytest.raises(ValueError) as refusal:
        reference.Muon(lr=0.1, **{name: value})
    assert str(refusal.value) == f"Muon: {message}"


@pytest.mark.parametrize("optimizer", sorted(DEFAULTS))
def test_defaults(optimizer):
    expected = {"lr": 0.1, **DEFAULTS[optimizer]}
    assert resolve(algorithms()[optimizer].HYPERPARAMETERS, {"lr": 0.1}, optimizer) == expected


@pytest.mark.parametrize("optimizer", ALL)
def test_every_declaration_is_documented_and_its_default_allowed(optimizer):
    for hyper in algorithms()[optimizer].HYPERPARAMETERS:
        assert hyper.doc
        assert hyper.default is REQUIRED or hyper.check(hyper.default) == hyper.default


@pytest.mark.parametrize("optimizer", sorted(set(ALL) - {"Adafactor"}))
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


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3)], ids=repr)
def test_whole_numbers_become_ints(value):
    checked = Hyper("x", interval="[1, 3]", kind="int").check(value)
    assert (type(checked), checked) == (int, 3)


def test_lists_become_tuples_that_can_be_hashed():
    sizes = Hyper("x", interval="[1, inf)", kind="sizes", optional=True)
    assert sizes.check([np.int64(4), 2]) == (4, 2)
    assert sizes.check(None) is None
    coefficients = Hyper("x", "a", "(-inf, inf)", "coefficients", choices=("a", "b"))
    assert coefficients.check("b") == "b"
    assert coefficients.check([[1, -2, np.float32(0.5)]]) == ((1.0, -2.0, 0.5),)
    assert {type(number) for number in coefficients.check([[1, -2, 3]])[0]} == {float}
    assert hash((sizes.check([1]), coefficients.check([[1, 2, 3]])))


@pytest.mark.parametrize("optimizer", ALL)
def test_switches_names_and_counts_are_structural_and_numbers_are_not(optimizer):
    """What decides which rule and which buffers are used can be compared exactly; a default of None says neither."""
    structural = {bool: True, str: True, int: True, float: False, tuple: False}
    for hyper in algorithms()[optimizer].HYPERPARAMETERS:
        if type(hyper.default) in structural:
            assert hyper.structural == structural[type(hyper.default)]


def test_scaled():
    hyper = {"lr": 0.5, "betas": (0.9, 0.99)}
    assert scaled(hyper, 0.5) == {"lr": 0.25, "betas": (0.9, 0.99)}
    assert scaled({"lr": None}, 0.5) == {"lr": None, "lr_scale": 0.5}
    assert hyper["lr"] == 0.5


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
