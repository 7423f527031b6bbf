"""Hyperparameters: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from refused import refused_values

from rlx_gpu import reference
from rlx_gpu.reference import algorithms
from rlx_gpu.reference.hyper import REQUIRED, Hyper, resolve, scaled

ALL = sorted(algorithms())
# Written down a second time, from papers and packages: a slip in a declaration, or one that changes, fails here.
ALLOWED = {  # of all but bools; where an optimizer differs from others, under its name
    "lr": "a number in [0, inf)",
    "Adafactor.lr": "a number in [0, inf) or None",
    "weight_decay": "a number in [0, inf)",
    "betas": "a pair of numbers in [0, 1)",
    "eps": "a number in [0, inf)",
    "Adafactor.eps": "a pair of numbers in [0, inf)",
    "Muon.eps": "a number in (0, inf)",
    "momentum": "a number in [0, 1)",
    "dampening": "a number in [0, 1]",
    "momentum_decay": "a number in [0, inf) or None",
    "nus": "a pair of numbers in [0, 1]",
    "gamma": "a number in [0, inf)",
    "rho": "a number in (0, inf)",
    "beta2_decay": "a number in (-inf, 0]",
    "clip_threshold": "a number in (0, inf)",
    "ndim_policy": "one of fallback, flatten, batch",
    "ns_coefficients": "one of keller, quintic, polar_express, cans, or a list of triples of numbers in (-inf, inf)",
    "ns_steps": "a whole number in [1, 100]",
    "ns_dtype": "one of bfloat16, float16, float32",
    "adjust_lr_fn": "one of original, match_rms_adamw, unit_rms, spectral",
    "split_sizes": "a tuple of whole numbers in [1, inf) or None",
    "fallback": "one of adamw, sgd",
    "fallback_lr_scale": "a number in [0, inf)",
    "fallback_eps": "a number in [0, inf)",
    "threshold": "a number in [4, inf)",
    "shampoo_beta": "a number in [0, 1) or None",
    "precondition_frequency": "a whole number in [1, inf)",
    "max_precond_dim": "a whole number in [0, inf)",
    "max_precond_skew": "a number in [0, inf)",
    "precond_lr": "a number in [0, inf)",
    "precond_beta": "a number in [0, 1)",
    "clip_update_rms": "a number in (0, inf)",
}
DEFAULTS = {
    "SGD": {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0},
    "Adam": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False},
    "AdamW": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False},
    "NAdamW": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "momentum_decay": None},
    "RAdam": {
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "decoupled_weight_decay": False,
        "threshold": 5.0,
    },
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


@pytest.mark.parametrize("optimizer", ALL)
def test_refused_values_name_hyperparameter_value_and_range(optimizer):
    for hyper in algorithms()[optimizer].HYPERPARAMETERS:
        for value, culprit in refused_values(hyper):
            with pytest.raises(ValueError) as refusal:
                getattr(reference, optimizer)(**{"lr": 0.1, hyper.name: value})
            message = str(refusal.value)
            assert message.startswith(f"{optimizer}: {hyper.name}")
            assert (hyper.allowed if hyper.kind in ("bool", "choice") else hyper.interval) in message
            assert message.endswith(f"got {culprit!r}")


def test_message_for_an_element_of_a_pair():
    with pytest.raises(ValueError, match=r"^AdamW: betas\[0\] must be in \[0, 1\), got 1\.5$"):
        reference.AdamW(lr=0.1, betas=(1.5, 0.9))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ns_coefficients", [[1, 2]], "ns_coefficients[0] must be a triple of numbers in (-inf, inf), got [1, 2]"),
        ("ns_coefficients", [3.0, 1.0], "ns_coefficients[0] must be a triple of numbers in (-inf, inf), got 3.0"),
        ("ns_coefficients", [(1, 2, 3), (1, 2, float("nan"))], "ns_coefficients[1][2] must be in (-inf, inf), got nan"),
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


@pytest.mark.parametrize("optimizer", DEFAULTS)
def test_defaults(optimizer):
    declared = {hyper.name: hyper.default for hyper in algorithms()[optimizer].HYPERPARAMETERS if hyper.name != "lr"}
    missing = declared.keys() - DEFAULTS.get(optimizer, {}).keys()
    assert not missing, f"DEFAULTS of {optimizer} lacks {', '.join(sorted(missing))}"
    assert declared == DEFAULTS[optimizer]
    assert resolve(algorithms()[optimizer].HYPERPARAMETERS, {"lr": 0.1}, optimizer) == {"lr": 0.1, **declared}


@pytest.mark.parametrize("optimizer", DEFAULTS)
def test_allowed(optimizer):
    for hyper in algorithms()[optimizer].HYPERPARAMETERS:
        if hyper.kind != "bool":
            written = ALLOWED.get(f"{optimizer}.{hyper.name}", ALLOWED.get(hyper.name))
            assert hyper.allowed == written, f"ALLOWED of {optimizer}.{hyper.name}"


@pytest.mark.parametrize("optimizer", ALL)
def test_every_declaration_is_documented_and_its_default_allowed(optimizer):
    for hyper in algorithms()[optimizer].HYPERPARAMETERS:
        assert hyper.doc
        assert hyper.default is REQUIRED or hyper.check(hyper.default) == hyper.default


LRS = {
    **dict.fromkeys(("SGD", "Adam", "AdamW", "RAdam", "Muon", "LAMB", "QHAdamW", "KronPSGD"), 1e-3),
    **{"NAdamW": 2e-3, "Lion": 1e-4, "Sophia": 1e-4, "MARS": 3e-3, "SOAP": 3e-3, "Adafactor": None},
}


@pytest.mark.parametrize("optimizer", ALL)
def test_lr_has_torchs_default_or_the_published_one(optimizer):
    assert getattr(reference, optimizer)().hyper["lr"] == LRS[optimizer]


def test_a_required_hyperparameter_that_is_missing_is_named():
    with pytest.raises(TypeError, match="trial: missing required hyperparameter 'span'"):
        resolve([Hyper("span")], {}, "trial")


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


@pytest.mark.parametrize("given", [[1, np.float32(0.5)], (1, 0.5, np.int64(2))], ids=len)
def test_several_numbers_become_a_tuple_of_floats(given):
    checked = Hyper("x", tuple(given), kind="floats").check(given)
    assert checked == tuple(given)
    assert [type(checked), *map(type, checked)] == [tuple] + [float] * len(given)


def test_the_default_fixes_how_many_numbers_there_are():
    pair, triple = (Hyper("x", default, "[0, 1)", "floats") for default in ((0.9, 0.9), (0.9, 0.9, 0.9)))
    assert (pair.allowed, triple.allowed) == ("a pair of numbers in [0, 1)", "3 numbers in [0, 1)")
    for value in ((0.9, 0.9), (0.9,) * 4, (), 0.9, "abc", None):
        with pytest.raises(ValueError) as refusal:
            triple.check(value)
        assert str(refusal.value) == f"x must be 3 numbers in [0, 1), got {value!r}"
    with pytest.raises(ValueError, match=r"^x\[2\] must be in \[0, 1\), got 1.0$"):
        triple.check((0.9, 0.9, 1.0))
    for default in (REQUIRED, 0.9, (0.9,), None):
        with pytest.raises(ValueError, match="x: kind 'floats' needs a tuple of two or more numbers as its default"):
            Hyper("x", default, kind="floats")


def test_bools_become_bools():
    assert Hyper("x", kind="bool").check(np.True_) is True


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3)], ids=repr)
def test_whole_numbers_become_ints(value):
    for kind in ("int", "steps"):
        checked = Hyper("x", interval="[1, 3]", kind=kind).check(value)
        assert (type(checked), checked) == (int, 3)


@pytest.mark.parametrize("value", [1000.0, 0, True, "1000", (1000,)], ids=repr)
def test_steps_are_whole_and_no_choice_of_a_rule(value):
    warmup = Hyper("warmup", 1000, "[1, inf)", "steps")
    assert not warmup.structural
    assert Hyper("size", 1000, "[1, inf)", "int").structural
    with pytest.raises(ValueError, match=r"warmup must be a whole number in \[1, inf\), got"):
        warmup.check(value)


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
        if type(hyper.default) in structural and hyper.kind != "steps":
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
