"""The references as optimizers: stepping by name, learning rates, formats, and errors that change nothing."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from reference_runs import BOUNDED

from rlx_gpu import reference
from rlx_gpu.reference import algorithms
from rlx_gpu.reference.formats import round_to
from rlx_gpu.reference.matrices import has_fallback

ALL = sorted(algorithms())
MATRIX = [name for name in ALL if has_fallback(algorithms()[name])]


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


def snapshot(optimizer, items):
    """Copies of all that a step may change."""
    return {name: param.copy() for name, _, param, _ in items}, optimizer.state_dict()


def assert_same_state(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert_array_equal(actual[key], value, err_msg=key)


def assert_unchanged(optimizer, items, before):
    params, state = before
    for name, _, param, _ in items:
        assert_array_equal(param, params[name])
    assert_same_state(optimizer.state_dict(), state)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.filterwarnings("error")
def test_runs_the_algorithm_in_place(name):
    optimizer, items, algorithm = make(name), batch(), algorithms()[name]
    expected = {item: (param.copy(), algorithm.init_state(shape)) for item, shape, param, _ in items}
    for step in (1, 2, 3):
        optimizer.step_batch(items)
        optimizer.end_iteration()
        for item, _, param, grad in items:
            old_param, old_state = expected[item]
            new_param, state = expected[item] = algorithm.update(old_param, grad, old_state, step, **optimizer.hyper)
            assert_array_equal(param, new_param)
            for slot, value in state.items():
                assert_array_equal(optimizer.state_dict()[f"{slot}/{item}"], value)
            assert optimizer.state_dict()[f"step/{item}"] == step


@pytest.mark.parametrize("name", ALL)
def test_step_and_step_batch_agree(name):
    one, many, items, copies = make(name), make(name), batch(), batch()
    for _ in range(2):
        many.step_batch(item for item in items)
        many.end_iteration()
        for item in copies:
            one.step(*item)
        one.end_iteration()
    for (_, _, param, _), (_, _, twin, _) in zip(items, copies, strict=True):
        assert_array_equal(param, twin)
    assert_same_state(one.state_dict(), many.state_dict())


@pytest.mark.parametrize("name", ALL)
def test_signature_and_documentation(name):
    optimizer = getattr(reference, name)
    signature = inspect.signature(optimizer)
    hypers = algorithms()[name].HYPERPARAMETERS
    fallback = ["use_fallback"] if name in MATRIX else []
    options = ["state_dtype", "rounding", "seed", "lr_scale", *fallback, "skip_nonfinite", "max_grad_norm"]
    assert [*signature.parameters] == [*(hyper.name for hyper in hypers), *options]
    assert optimizer(0.1).hyper["lr"] == 0.1
    for word in (*signature.parameters, "θ", "Source"):
        assert word in optimizer.__doc__
    assert name in dir(reference)
    assert getattr(reference, name) is optimizer


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="'Adamm'"):
        reference.Adamm  # noqa: B018


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
def test_optimizers_can_be_copied(duplicate):
    optimizer, items, twins = make("NAdamW"), batch(), batch()
    optimizer.step_batch(items)
    twin = duplicate(optimizer)
    assert_same_state(twin.state_dict(), optimizer.state_dict())
    for used, params in ((optimizer, items), (twin, twins)):
        used.end_iteration()
        params[0][2][...] = 1.0
        used.step(*params[0])
    assert_array_equal(items[0][2], twins[0][2])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", ALL)
def test_low_precision_parameters_are_computed_in_float64(name, dtype):
    optimizer, items = make(name), batch(dtype=dtype)
    exact, wide = make(name), [(n, s, p.astype(np.float64), g.astype(np.float64)) for n, s, p, g in batch(dtype=dtype)]
    for _ in range(2):
        optimizer.step_batch(items)
        exact.step_batch(wide)
        for (_, _, param, _), (_, _, wide_param, _) in zip(items, wide, strict=True):
            assert param.dtype == dtype
            assert_array_equal(param, wide_param.astype(dtype))
            wide_param[...] = param
        optimizer.end_iteration()
        exact.end_iteration()
    assert_same_state(optimizer.state_dict(), exact.state_dict())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ALL)
def test_state_dtype_rounds_every_slot_but_scalars(name, dtype):
    options = {"momentum": 0.9} if name == "SGD" else {"momentum_decay": 0.004} if name == "NAdamW" else {}
    optimizer = make(name, state_dtype=dtype, **options)
    for seed in range(2):
        optimizer.step_batch(batch(seed))
        optimizer.end_iteration()
    wide = getattr(algorithms()[name], "FULL_PRECISION_SLOTS", ())
    for key, value in optimizer.state_dict().items():
        if key.startswith("mu_product/"):
            assert value != round_to(value, dtype)
        elif isinstance(value, np.ndarray):
            kept = "float32" if key.partition("/")[0] in wide else dtype
            assert_array_equal(value, round_to(value, kept), err_msg=key)


def test_views_are_updated_in_place():
    whole, optimizer = np.ones((4, 6)), make("SGD", weight_decay=0.0)
    optimizer.step("columns", (4, 2), whole[:, ::3], np.ones((4, 2)))
    assert_allclose(whole, np.where(np.arange(6) % 3 == 0, 0.95, 1.0) * np.ones((4, 1)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.filterwarnings("error")
def test_empty_arrays_are_a_no_op(name):
    optimizer = make(name)
    for shape in ((0,), (0, 3), (3, 0)):
        optimizer.step(f"empty{shape}", shape, np.zeros(shape), np.zeros(shape))
    optimizer.step_batch([])


def test_set_lr_counts_from_the_next_step():
    optimizer, param, grad = make("SGD", weight_decay=0.0), np.zeros(1), np.ones(1)
    optimizer.step("w", (1,), param, grad)
    optimizer.set_lr(1)
    optimizer.end_iteration()
    optimizer.step("w", (1,), param, grad)
    assert_allclose(param, -1.05)
    for bad in (-1.0, float("nan"), None):
        with pytest.raises(ValueError, match="SGD: lr must be"):
            optimizer.set_lr(bad)
    assert optimizer.hyper["lr"] == 1.0
    relative = reference.Adafactor(lr=0.1)
    relative.set_lr(None)
    assert relative.hyper["lr"] is None


class Halved(reference.AdamW):
    """A subclass with its own factors."""

    def lr_scale(self, name):
        return 0.5 if name == "weight" else 1.0


@pytest.mark.parametrize(
    ("optimizer_class", "factors"),
    [
        (reference.AdamW, {"weight": 0.5}),
        (reference.AdamW, lambda name: 0.5 if name == "weight" else 1.0),
        (Halved, None),
    ],
    ids=["mapping", "callable", "overridden"],
)
def test_lr_scale(optimizer_class, factors):
    scaled = optimizer_class(lr=0.05, weight_decay=0.1, lr_scale=factors)
    plain, halved = make("AdamW"), make("AdamW", lr=0.025)
    items, full, half = batch(), batch(), batch()
    for optimizer, params in ((scaled, items), (plain, full), (halved, half)):
        optimizer.step_batch(params)
    for (name, _, param, _), whole, part in zip(items, full, half, strict=True):
        assert_array_equal(param, (part if name == "weight" else whole)[2])
    assert scaled.lr_scale("weight") == 0.5


def test_lr_scale_reaches_adafactors_relative_step():
    moves = []
    for options in ({}, {"lr_scale": {"w": 0.5}}):
        param = np.full((2, 3), 2.0)
        reference.Adafactor(**options).step("w", (2, 3), param, np.ones((2, 3)))
        moves.append(2.0 - param)
    assert_allclose(moves[1], moves[0] / 2)


def test_a_bad_lr_scale_names_the_parameter_and_changes_nothing():
    optimizer, items = make("AdamW", lr_scale={"weight": -1.0}), batch()
    before = snapshot(optimizer, items)
    with pytest.raises(ValueError, match=r"'weight': lr_scale must be in \[0, inf\), got -1.0"):
        optimizer.step_batch(items)
    assert_unchanged(optimizer, items, before)


@pytest.mark.parametrize(
    ("option", "value"),
    [("state_dtype", "int8"), ("rounding", "up"), ("seed", 1.5), ("seed", True), ("lr_scale", 0.5)],
    ids=str,
)
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=rf"AdamW: {option} must be .*, got {value!r}"):
        make("AdamW", **{option: value})


def readonly(array):
    array.flags.writeable = False
    return array


ONES = np.ones(4)
BAD_ITEMS = {
    "param not an array": ((4,), [1.0] * 4, ONES, TypeError, "param must be a NumPy array, got list"),
    "grad not an array": ((4,), ONES.copy(), None, TypeError, "grad must be a NumPy array, got NoneType"),
    "complex grad": ((4,), ONES.copy(), ONES * 1j, TypeError, "grad must be float16, .*, got complex128"),
    "integer param": ((4,), np.ones(4, int), ONES, TypeError, "param must be float16, .*, got int64"),
    "object grad": ((4,), ONES.copy(), ONES.astype(object), TypeError, "got object"),
    "long double": ((4,), ONES.astype(np.longdouble), ONES, TypeError, "got (float128|longdouble)"),
    "param shape": ((5,), ONES.copy(), np.ones(5), ValueError, r"param has shape \(4,\), expected \(5,\)"),
    "grad shape": ((4,), ONES.copy(), np.ones((4, 1)), ValueError, r"grad has shape \(4, 1\), expected \(4,\)"),
    "read-only": ((4,), readonly(np.ones(4)), ONES, ValueError, "read-only"),
    "state shape": ((2, 2), np.ones((2, 2)), np.ones((2, 2)), ValueError, r"shape \(2, 2\) .* its state's \(4,\)"),
    "state dtype": ((4,), np.ones(4, np.float32), ONES, ValueError, "param is float32, but was float64"),
}


@pytest.mark.parametrize("bad", BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_a_bad_item_names_its_parameter_and_changes_nothing(bad):
    shape, param, grad, error, message = bad
    optimizer, items = make("AdamW"), batch()
    optimizer.step_batch(items)
    optimizer.end_iteration()
    before = snapshot(optimizer, items)
    with pytest.raises(error, match=f"'bias'.*{message}"):
        optimizer.step_batch([*items[1:], ("bias", shape, param, grad)])
    assert_unchanged(optimizer, items, before)
    optimizer.step_batch(items)  # nor was any parameter marked as stepped


def test_stepping_twice_in_an_iteration():
    optimizer, items = make("Lion"), batch()
    with pytest.raises(ValueError, match="'weight': stepped twice"):
        optimizer.step_batch([*items, items[1]])
    optimizer.step(*items[1])
    before = snapshot(optimizer, items)
    with pytest.raises(ValueError, match="'weight': stepped twice"):
        optimizer.step_batch(items)
    assert_unchanged(optimizer, items, before)
    optimizer.end_iteration()
    optimizer.step_batch(items)
    steps = {key: value for key, value in optimizer.state_dict().items() if key.startswith("step/")}
    assert steps == {"step/weight": 2, "step/bias": 1, "step/scale": 1}


def test_names_are_strings():
    with pytest.raises(TypeError, match="names are strings, got 3"):
        make("SGD").step(3, (1,), np.ones(1), np.ones(1))


@pytest.mark.parametrize("bad", [np.nan, -np.inf], ids=str)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.filterwarnings("error")
def test_nonfinite_gradients(name, bad):
    items = batch()
    careless, careful = make(name), make(name, skip_nonfinite=True)
    for optimizer in (careless, careful):
        optimizer.step_batch(items)
        optimizer.end_iteration()
    items[1][3][2, 3] = bad
    before = snapshot(careful, items)
    careful.step_batch(items)
    assert_unchanged(careful, items, before)
    careless.step_batch(items)
    bounded = name in BOUNDED and bad == -np.inf
    assert np.isfinite(items[1][2][2, 3]) == bounded, "BOUNDED names the optimizers whose update a sign or clip bounds"
    assert careless.state_dict()["step/weight"] == 2
