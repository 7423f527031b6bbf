"""State dicts: a resumed run goes on to the bit, and a wrong state is refused as a whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rlx_gpu import reference
from rlx_gpu.reference import algorithms
from rlx_gpu.reference.matrices import has_fallback

ALL = sorted(algorithms())
MATRIX = [name for name in ALL if has_fallback(algorithms()[name])]
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
    expected = {"optimizer", "iteration", *(["revision"] if hasattr(algorithms()[name], "REVISION") else [])}
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
        message = "revision 1 of" if key == "revision" else f"missing '{key}'"
        refused(name, {k: v for k, v in state.items() if k != key}, message, fresh=fresh)


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


MATRIX_SHAPES = {"w": (4, 6), "square": (3, 3), "v": (5,), "experts": (2, 3, 4), "conv": (2, 3, 2, 2), "scale": ()}
MATRIX_CASES = [
    ("Muon", {}),
    ("Muon", {"fallback": "sgd"}),
    ("SOAP", {"precondition_frequency": 2}),
    ("SOAP", {"max_precond_dim": 3}),
    ("SOAP", {"max_precond_dim": 0}),
    ("KronPSGD", {}),
    ("KronPSGD", {"max_precond_skew": 99.0}),
    ("KronPSGD", {"max_precond_dim": 3}),
]


def matrix_trained(name, **options):
    """An optimizer of matrices, vectors and stacks of matrices after three steps."""
    optimizer = make(name, **options)
    train(optimizer, {key: np.ones(shape) for key, shape in MATRIX_SHAPES.items()}, range(3))
    return optimizer


@pytest.mark.parametrize("ndim_policy", ["fallback", "flatten", "batch"])
@pytest.mark.parametrize(("name", "options"), MATRIX_CASES, ids=str)
def test_matrix_state_tells_its_parameters_shapes(name, options, ndim_policy):
    """A fresh optimizer takes the state over, and refuses a parameter of another shape afterwards."""
    state = matrix_trained(name, ndim_policy=ndim_policy, **options).state_dict()
    twin = make(name, ndim_policy=ndim_policy, **options)
    twin.load_state_dict(dict(sorted(state.items())))  # in no helpful order
    assert_same_state(twin.state_dict(), state)
    for key, shape in MATRIX_SHAPES.items():
        other = (*shape, 2)
        with pytest.raises(ValueError, match=rf"'{key}': shape .* does not match its state's"):
            twin.step(key, other, np.ones(other), np.ones(other))
    train(twin, {key: np.ones(shape) for key, shape in MATRIX_SHAPES.items()}, [3])


@pytest.mark.parametrize(("name", "options"), MATRIX_CASES, ids=str)
def test_every_wrong_shape_of_a_matrix_state_is_refused(name, options):
    """By a fresh optimizer too, wherever another slot tells the shape; no shape is tried that memory cannot hold."""
    state = matrix_trained(name, ndim_policy="batch", **options).state_dict()
    for key, value in state.items():
        if isinstance(value, np.ndarray):
            for fresh in (True, False):
                if not _alone(key, state, fresh):
                    optimizer = make(name, ndim_policy="batch", **options)
                    if not fresh:
                        optimizer.load_state_dict(state)
                    with pytest.raises(ValueError, match=key):
                        optimizer.load_state_dict({**state, key: np.ones((*value.shape, 2))})


def test_large_slots_that_fit_no_shape_are_refused_without_trying_their_product():
    state = matrix_trained("SOAP").state_dict()
    wide = {key: np.zeros((300, 300)) for key in state if key.endswith("/square") and "step" not in key}
    with pytest.raises(ValueError, match=r"no parameter has slots of these shapes: .*'left_cov/square'"):
        make("SOAP").load_state_dict({**state, **wide})


@pytest.mark.parametrize(
    ("name", "saved", "loaded", "message"),
    [
        ("Muon", {}, {"fallback": "sgd"}, "(missing|unknown) '.*/v'"),
        ("Muon", {"ndim_policy": "batch"}, {}, "'momentum_buffer/experts'"),
        ("SOAP", {}, {"matrix": False}, "unknown '.*/w'"),
        ("SOAP", {"max_precond_dim": 3}, {}, r"'right_basis/w' \(0, 0\)"),
        ("SOAP", {"ndim_policy": "flatten"}, {"ndim_policy": "batch"}, r"'left_basis/experts' \(2, 2\)"),
        ("KronPSGD", {"matrix": False}, {}, "'factor/w'"),
        ("KronPSGD", {}, {"max_precond_skew": 99.0}, r"'right_factor/w' \(6,\)"),
    ],
    ids=str,
)
def test_a_matrix_state_of_other_hyperparameters_is_refused(name, saved, loaded, message):
    with pytest.raises(ValueError, match=message):
        make(name, **loaded).load_state_dict(matrix_trained(name, **saved).state_dict())


def test_phase_is_kept():
    """The reference never sets it, but a state that brings one goes on in its own rhythm."""
    optimizer, state = make("SOAP"), matrix_trained("SOAP").state_dict()
    optimizer.load_state_dict({**state, "phase/w": np.array(7.0)})
    assert optimizer.state_dict()["phase/w"] == 7.0


@pytest.mark.parametrize("ndim_policy", ["fallback", "flatten", "batch"])
@pytest.mark.parametrize("name", MATRIX)
def test_resuming_in_the_middle_of_a_period_is_bit_identical(name, ndim_policy):
    """Of SOAP's bases, and of the balancing and the schedule of KronPSGD's factors."""
    options = {"ndim_policy": ndim_policy, "use_fallback": ["square"]}
    through, halves = ({key: np.ones(shape) for key, shape in MATRIX_SHAPES.items()} for _ in range(2))
    train(make(name, **options), through, range(523))
    first, second = make(name, **options), make(name, **options)
    train(first, halves, range(516))
    state = first.state_dict()
    second.load_state_dict(state)
    train(second, halves, range(516, 523))
    for key, value in through.items():
        assert_array_equal(halves[key], value)


def test_loading_starts_an_iteration_afresh():
    optimizer, params = trained("AdamW"), parameters()
    state = optimizer.state_dict()
    item = ("bias", (4,), params["bias"], np.ones(4))
    optimizer.step(*item)
    optimizer.load_state_dict(state)
    optimizer.step(*item)
    assert optimizer.state_dict()["step/bias"] == 4
