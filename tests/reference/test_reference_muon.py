"""Newton–Schulz and Muon: what their definitions promise, whatever the numbers."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from reference_runs import run as run_named

from rlx_gpu.reference import algorithms, newton_schulz
from rlx_gpu.reference.newton_schulz import COEFFICIENTS, schedule

run = partial(run_named, "Muon")
SMALLEST = 2e-3  # of the singular values, as a share of the Frobenius norm, that the intervals below are promised for
# Where the singular values end, after how many steps, to the four digits that iterating the scalar polynomial gives.
INTERVALS = {
    ("keller", 5): (0.6818, 1.2024),
    ("keller", 10): (0.6818, 1.1344),
    ("quintic", 5): (0.8525, 1.1450),
    ("quintic", 10): (0.9888, 0.9897),
    ("polar_express", 5): (0.8703, 1.1236),
    ("polar_express", 10): (1.0000, 1.0000),
    ("cans", 5): (0.8844, 1.1198),
    ("cans", 10): (1.0202, 1.0383),
}


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def scalar(sigma, coefficients, steps):
    """The polynomials of every step, one after the other, on singular values."""
    for a, b, c in schedule(coefficients, steps):
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return sigma


def orthonormal(rng, rows, columns):
    return np.linalg.qr(rng.normal(size=(rows, columns)))[0]


def with_singular_values(rng, rows, columns, sigma):
    """A matrix with these singular values and its singular vectors."""
    left, right = orthonormal(rng, rows, len(sigma)), orthonormal(rng, columns, len(sigma))
    return left * sigma @ right.T, left, right


@pytest.mark.parametrize(("coefficients", "steps"), INTERVALS, ids=str)
def test_singular_values_end_in_the_interval_of_their_polynomials(coefficients, steps, rng):
    low, high = INTERVALS[coefficients, steps]
    reached = scalar(np.geomspace(SMALLEST, 1, 400_001), coefficients, steps)
    assert_allclose([reached.min(), reached.max()], [low, high], atol=1e-4)
    spread = np.geomspace(2 * SMALLEST, 1, 12)
    x, left, right = with_singular_values(rng, 12, 20, spread)
    result = newton_schulz(x, steps, coefficients)
    sigma = np.linalg.svd(result, compute_uv=False)
    assert np.all((sigma > low - 1e-4) & (sigma < high + 1e-4))
    # and singular vector by singular vector: eps = 1e-7 is 1e-7 of the norm, which the first slope multiplies by 8
    moved = scalar(spread / np.linalg.norm(spread), coefficients, steps)
    assert_allclose(left.T @ result @ right, np.diag(moved), atol=1e-4 if steps > 5 else 1e-5)


def test_the_named_polynomials_are_the_published_ones():
    assert COEFFICIENTS["keller"] == ((3.4445, -4.7750, 2.0315),)
    assert {name: len(triples) for name, triples in COEFFICIENTS.items()} == {
        "keller": 1,
        "quintic": 5,
        "polar_express": 7,
        "cans": 5,
    }
    # Each shrunk by 1.01 in its argument, which leaves p(x/1.01); the last keeps its fixed point at one.
    a, b, c = COEFFICIENTS["polar_express"][0]
    assert_allclose([a * 1.01, b * 1.01**3, c * 1.01**5], [8.28721, -23.59589, 17.30039], rtol=1e-14)
    assert COEFFICIENTS["polar_express"][-1] == (1.875, -1.25, 0.375)


def test_the_last_polynomial_of_a_list_goes_on():
    triples = ((1.0, 0.0, 0.0), (1.5, -0.5, 0.0))
    assert schedule(triples, 4) == (triples[0], triples[1], triples[1], triples[1])
    assert schedule(triples, 1) == triples[:1]
    assert schedule("polar_express", 9)[6:] == (COEFFICIENTS["polar_express"][-1],) * 3


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_the_transpose_commutes(coefficients, rng):
    tall = rng.normal(size=(9, 4))
    assert_array_equal(newton_schulz(tall.T, 5, coefficients), newton_schulz(tall, 5, coefficients).T)


def test_the_size_of_the_input_is_lost(rng):
    x = rng.normal(size=(5, 8))
    assert_allclose(newton_schulz(1e6 * x), newton_schulz(x), rtol=1e-5)  # eps is 1e-7 of the norm, times 3.4445⁵


@pytest.mark.filterwarnings("error")
def test_zeros_and_lost_ranks_stay(rng):
    assert_array_equal(newton_schulz(np.zeros((2, 3, 4))), 0)
    thin = np.outer(rng.normal(size=6), rng.normal(size=4))
    sigma = np.linalg.svd(newton_schulz(thin), compute_uv=False)
    assert_allclose(sigma, [scalar(1.0, "keller", 5), 0, 0, 0], atol=1e-5)


def test_a_batch_is_its_matrices(rng):
    x = rng.normal(size=(2, 3, 5, 4))
    for index in np.ndindex(2, 3):
        assert_allclose(newton_schulz(x)[index], newton_schulz(x[index]), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"x": np.ones(3)}, r"x must have at least two dimensions, got shape \(3,\)"),
        ({"steps": 0}, r"steps must be a whole number in \[1, 100\], got 0"),
        ({"coefficients": "kellr"}, "coefficients must be one of keller, .*, got 'kellr'"),
        ({"coefficients": [(1.0, 2.0)]}, r"coefficients\[0\] must be a triple"),
        ({"eps": 0.0}, r"eps must be in \(0, inf\), got 0.0"),
    ],
    ids=["vector", "steps", "name", "pair", "eps"],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        newton_schulz(**{"x": np.ones((2, 2)), **call})


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)], ids=str)
@pytest.mark.parametrize(
    ("adjust_lr_fn", "scale"),
    [
        ("original", lambda m, n: np.sqrt(max(1, m / n))),
        ("match_rms_adamw", lambda m, n: 0.2 * np.sqrt(max(m, n))),
        ("unit_rms", lambda m, n: np.sqrt(max(m, n))),
        ("spectral", lambda m, n: np.sqrt(m / n)),
    ],
    ids=["original", "match_rms_adamw", "unit_rms", "spectral"],
)
def test_every_adjustment(adjust_lr_fn, scale, shape, rng):
    """One step from zero is lr times the scaled orthogonal factor; the decay is not scaled."""
    grad, param = rng.normal(size=shape), rng.normal(size=shape)
    given = {"adjust_lr_fn": adjust_lr_fn, "ns_coefficients": "polar_express", "ns_steps": 10}
    moved, _ = run(param, [grad], weight_decay=0.3, **given)
    left, _, right = np.linalg.svd(grad, full_matrices=False)
    assert_allclose(moved, param - 0.1 * (scale(*shape) * left @ right + 0.3 * param), atol=1e-7)
    rms = np.sqrt(np.mean((moved - param * (1 - 0.1 * 0.3)) ** 2)) / 0.1
    if adjust_lr_fn == "unit_rms":
        assert_allclose(rms, 1.0, rtol=1e-6)
    if adjust_lr_fn == "match_rms_adamw":
        assert_allclose(rms, 0.2, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_by_hand(nesterov, rng):
    param, grads = np.zeros((3, 4)), rng.normal(size=(2, 3, 4))
    moved, state = run(param, grads, momentum=0.5, nesterov=nesterov)
    buffer = 0.5 * grads[0] + grads[1]
    assert_allclose(state["momentum_buffer"], buffer, rtol=1e-15)
    first = 1.5 * grads[0] if nesterov else grads[0]
    second = grads[1] + 0.5 * buffer if nesterov else buffer
    assert_allclose(moved, -0.1 * (newton_schulz(first) + newton_schulz(second)), rtol=1e-13)


@pytest.mark.parametrize("adjust_lr_fn", algorithms()["Muon"].ADJUSTMENTS)
def test_split_sizes_are_blocks_done_separately(adjust_lr_fn, rng):
    param, grads = rng.normal(size=(10, 4)), rng.normal(size=(3, 10, 4))
    given = {"adjust_lr_fn": adjust_lr_fn, "weight_decay": 0.1}
    together, state = run(param, grads, split_sizes=(6, 3, 1), **given)
    parts = [run(param[rows], grads[:, rows], **given) for rows in (slice(0, 6), slice(6, 9), slice(9, 10))]
    assert_allclose(together, np.concatenate([moved for moved, _ in parts]), rtol=1e-12)
    assert_array_equal(state["momentum_buffer"], np.concatenate([part["momentum_buffer"] for _, part in parts]))
    assert np.abs(together - run(param, grads, **given)[0]).max() > 1e-3


def test_split_sizes_leave_other_matrices_whole(rng):
    param, grads = rng.normal(size=(9, 4)), rng.normal(size=(2, 9, 4))
    assert_array_equal(run(param, grads, split_sizes=(6, 4))[0], run(param, grads)[0])
    batch, grads = rng.normal(size=(2, 10, 4)), rng.normal(size=(2, 2, 10, 4))
    split, _ = run(batch, grads, split_sizes=(6, 4), ndim_policy="batch")
    for index in range(2):
        alone, _ = run(batch[index], grads[:, index], split_sizes=(6, 4))
        assert_allclose(split[index], alone, rtol=1e-12)


def test_ndim_policies(rng):
    param, grads = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(3, 2, 3, 5, 4))
    batched, _ = run(param, grads, ndim_policy="batch", weight_decay=0.1)
    for index in np.ndindex(2, 3):
        alone, _ = run(param[index], grads[:, *index], weight_decay=0.1)
        assert_allclose(batched[index], alone, rtol=1e-12)
    flattened, state = run(param, grads, ndim_policy="flatten", weight_decay=0.1)
    flat, _ = run(param.reshape(2, -1), grads.reshape(3, 2, -1), weight_decay=0.1)
    assert_array_equal(flattened, flat.reshape(param.shape))
    assert state["momentum_buffer"].shape == param.shape
    _, state = run(param, grads)
    assert state.keys() == {"exp_avg", "exp_avg_sq"}


def test_the_fallback_is_adamw_with_a_scaled_lr(rng):
    """For vectors, and for matrices that are told so."""
    shared = {"betas": (0.8, 0.9), "weight_decay": 0.1}
    for shape, matrix in (((6,), True), ((3, 2), False)):
        param, grads = rng.normal(size=shape), rng.normal(size=(3, *shape))
        ours, _ = run(param, grads, matrix=matrix, fallback_eps=1e-3, fallback_lr_scale=0.25, **shared)
        assert_array_equal(ours, run_named("AdamW", param, grads, lr=0.025, eps=1e-3, **shared)[0])


def test_the_sgd_fallback_by_hand():
    param, grads = np.ones(1), np.array([[2.0], [3.0]])
    moved, state = run(param, grads, fallback="sgd", momentum=0.5, fallback_lr_scale=0.5, weight_decay=0.1)
    first = 1 - 0.05 * (2 + 0.5 * 2 + 0.1)  # M = 2, then 4; nesterov
    assert_allclose(moved, first - 0.05 * (3 + 0.5 * 4 + 0.1 * first), rtol=1e-15)
    assert_array_equal(state["momentum_buffer"], [4.0])


def test_ns_dtype_changes_nothing_in_float64(rng):
    param, grads = rng.normal(size=(4, 6)), rng.normal(size=(2, 4, 6))
    assert_array_equal(run(param, grads, ns_dtype="float16")[0], run(param, grads, ns_dtype="bfloat16")[0])
