"""SOAP: its bases, its coordinates, and what it becomes without them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from reference_runs import run as run_named

from rlx_gpu.reference import algorithms

run = partial(run_named, "SOAP")
run_adamw = partial(run_named, "AdamW")


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def skewed(rng, steps, rows, columns, condition=1e3):
    """Gradients A N B whose sides have a condition number each, so that bases matter."""
    left = np.linalg.qr(rng.normal(size=(rows, rows)))[0] * np.geomspace(1, 1 / condition, rows)
    right = np.linalg.qr(rng.normal(size=(columns, columns)))[0] * np.geomspace(1, 1 / condition, columns)
    return left @ rng.normal(size=(steps, rows, columns)) @ right.T


def orthogonal(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


@pytest.mark.parametrize("frequency", [1, 7])
def test_bases_stay_orthonormal(frequency, rng):
    _, state = run(np.zeros((6, 9)), skewed(rng, 500, 6, 9), precondition_frequency=frequency)
    for slot, size in (("left_basis", 6), ("right_basis", 9)):
        assert_allclose(state[slot].T @ state[slot], np.eye(size), atol=1e-6)


def test_bases_become_the_eigenvectors(rng):
    """Under a covariance that stands still the iteration diagonalises it, in descending order."""
    gradient = skewed(rng, 1, 5, 7, condition=30)[0]
    _, state = run(np.zeros((5, 7)), [gradient] * 300, precondition_frequency=1)
    for cov, basis in (("left_cov", "left_basis"), ("right_cov", "right_basis")):
        rotated = state[basis].T @ state[cov] @ state[basis]
        diagonal = np.diag(rotated)
        assert_allclose(rotated, np.diag(diagonal), atol=1e-9 * diagonal.max())
        assert np.all(np.diff(diagonal) <= 1e-12 * diagonal.max())


def test_the_first_bases_are_eigenvectors_of_a_stated_sign(rng):
    grad = rng.normal(size=(5, 5))
    _, state = run(np.zeros((5, 5)), [grad])
    left, values, right = np.linalg.svd(grad)
    for basis, vectors in ((state["left_basis"], left), (state["right_basis"], right.T)):
        assert_allclose(np.abs(np.sum(basis * vectors, axis=0)), 1.0, rtol=1e-10)
        assert np.all(basis[np.abs(basis).argmax(axis=0), np.arange(5)] > 0)
    assert np.all(np.diff(values) < 0)
    assert_allclose(state["left_cov"], 0.05 * grad @ grad.T, rtol=1e-12)
    assert_allclose(state["right_cov"], 0.05 * grad.T @ grad, rtol=1e-12)


def test_the_first_step_is_the_orthogonal_factor(rng):
    """In the basis of its singular vectors the gradient is diagonal, and Adam's first step its sign."""
    grad = rng.normal(size=(5, 5))
    left, _, right = np.linalg.svd(grad)
    moved, _ = run(np.zeros((5, 5)), [grad], eps=1e-9, weight_decay=0.0)  # far above rounding, far below σ
    assert_allclose(moved, -0.1 * left @ right, atol=1e-6)


def test_equivariance_with_period_one(rng):
    """Coordinates of either side do not matter: gradients U G Vᵀ move the parameter by U Δ Vᵀ."""
    grads, left, right = rng.normal(size=(12, 6, 6)), orthogonal(rng, 6), orthogonal(rng, 6)
    given = {"precondition_frequency": 1, "weight_decay": 0.0}
    moved, _ = run(np.zeros((6, 6)), grads, **given)
    turned, _ = run(np.zeros((6, 6)), left @ grads @ right.T, **given)
    # Vectors of close eigenvalues, and entries near zero, magnify rounding.
    assert_allclose(turned, left @ moved @ right.T, atol=1e-7)
    adam, _ = run(np.zeros((6, 6)), grads, max_precond_dim=0, **given)
    turned_adam, _ = run(np.zeros((6, 6)), left @ grads @ right.T, max_precond_dim=0, **given)
    assert np.abs(turned_adam - left @ adam @ right.T).max() > 1e-2


def test_equivariance_of_the_one_side_that_has_a_basis(rng):
    grads, left = rng.normal(size=(12, 4, 7)), orthogonal(rng, 4)
    given = {"precondition_frequency": 1, "weight_decay": 0.0, "max_precond_dim": 4}
    moved, state = run(np.zeros((4, 7)), grads, **given)
    turned, _ = run(np.zeros((4, 7)), left @ grads, **given)
    assert_allclose(turned, left @ moved, atol=1e-7)
    assert (state["left_basis"].shape, state["right_basis"].shape) == ((4, 4), (0, 0))


def test_without_bases_it_is_adamw(rng):
    param, grads = rng.normal(size=(4, 6)), rng.normal(size=(25, 4, 6))
    given = {"betas": (0.9, 0.97), "eps": 1e-6, "weight_decay": 0.2}
    ours, state = run(param, grads, max_precond_dim=0, **given)
    theirs, expected = run_adamw(param, grads, **given)
    assert_array_equal(ours, theirs)
    assert_array_equal(state["exp_avg_sq"], expected["exp_avg_sq"])
    for slot in algorithms()["SOAP"].FULL_PRECISION_SLOTS:
        assert state[slot].shape == (0, 0)


@pytest.mark.parametrize(("shape", "matrix"), [((5,), True), ((), True), ((2, 3, 4), True), ((3, 4), False)], ids=str)
def test_the_fallback_is_adamw(shape, matrix, rng):
    param, grads = rng.normal(size=shape), rng.normal(size=(5, *shape))
    given = {"betas": (0.9, 0.97), "eps": 1e-6, "weight_decay": 0.2}
    ours, state = run(param, grads, matrix=matrix, **given)
    assert_array_equal(ours, run_adamw(param, grads, **given)[0])
    assert state.keys() == {"exp_avg", "exp_avg_sq"}


def test_a_change_of_basis_carries_the_moments_over(rng):
    """Against the same moments turned entry by entry: the mean as a tensor, the variances through squared cosines."""
    grads = rng.normal(size=(3, 3, 4))
    given = {"precondition_frequency": 2, "betas": (0.9, 0.8), "shampoo_beta": 0.7}
    param, before = run(np.zeros((3, 4)), grads[:2], **given)
    _, after = run(param, grads[2:], state=before, first=3, **given)

    covariances = {"left_cov": grads[2] @ grads[2].T, "right_cov": grads[2].T @ grads[2]}
    bases = {}
    for slot, square in covariances.items():
        assert_allclose(after[slot], 0.7 * before[slot] + 0.3 * square, rtol=1e-12)
        basis = before[slot.replace("cov", "basis")]
        upper = np.linalg.cholesky(basis.T @ after[slot].T @ after[slot] @ basis).T
        bases[slot] = after[slot] @ basis @ np.linalg.inv(upper)  # the QR whose triangle has a positive diagonal
        assert_allclose(after[slot.replace("cov", "basis")], bases[slot], atol=1e-8)
    left = before["left_basis"].T @ bases["left_cov"]
    right = before["right_basis"].T @ bases["right_cov"]
    projected = bases["left_cov"].T @ grads[2] @ bases["right_cov"]
    mean, variance = np.zeros((3, 4)), np.zeros((3, 4))
    for i, j, k, n in np.ndindex(3, 4, 3, 4):
        mean[i, j] += left[k, i] * right[n, j] * before["exp_avg"][k, n]
        variance[i, j] += (left[k, i] * right[n, j]) ** 2 * before["exp_avg_sq"][k, n]
    assert_allclose(after["exp_avg"], 0.9 * mean + 0.1 * projected, atol=1e-8)
    assert_allclose(after["exp_avg_sq"], 0.8 * variance + 0.2 * projected**2, atol=1e-8)
    assert np.all(after["exp_avg_sq"] >= 0)


@pytest.mark.parametrize("phase", [0, 1, 2])
def test_bases_change_once_a_period_from_the_second_step_on(phase, rng):
    param, (grad, *grads) = np.zeros((3, 4)), rng.normal(size=(10, 3, 4))
    param, state = run(param, [grad], precondition_frequency=3)
    state["phase"] = np.array(float(phase))
    changed = []
    for step, grad in enumerate(grads, start=2):
        param, new = run(param, [grad], state=state, first=step, precondition_frequency=3)
        changed += [step] if np.any(new["left_basis"] != state["left_basis"]) else []
        assert new["phase"] == phase
        state = new
    assert changed == [step for step in range(2, 11) if (step - 1 + phase) % 3 == 0]


def test_shampoo_beta_is_beta2_unless_given(rng):
    param, grads = rng.normal(size=(4, 6)), rng.normal(size=(5, 4, 6))
    none, _ = run(param, grads, precondition_frequency=1, betas=(0.9, 0.8))
    same, _ = run(param, grads, precondition_frequency=1, betas=(0.9, 0.8), shampoo_beta=0.8)
    other, _ = run(param, grads, precondition_frequency=1, betas=(0.9, 0.8), shampoo_beta=0.9)
    assert_array_equal(none, same)
    assert np.abs(none - other).max() > 1e-6


@pytest.mark.parametrize("case", ["zero", "zero-first", "rank-one", "rank-one-forever", "huge", "tiny"])
@pytest.mark.filterwarnings("error")
def test_degenerate_gradients_stay_finite(case, rng):
    grads = rng.normal(size=(30, 5, 4))
    if case == "zero":
        grads *= 0
    elif case == "zero-first":
        grads[:15] = 0
    elif case == "rank-one":
        grads = np.einsum("ti,tj->tij", grads[:, :, 0], grads[:, 0])
    elif case == "rank-one-forever":
        grads = np.broadcast_to(np.outer(grads[0, :, 0], grads[0, 0]), grads.shape)
    else:
        grads *= 1e60 if case == "huge" else 1e-60
    moved, state = run(np.ones((5, 4)), grads, precondition_frequency=2, weight_decay=0.0)
    assert np.isfinite(moved).all()
    for slot in ("left_basis", "right_basis"):
        assert_allclose(state[slot].T @ state[slot], np.eye(len(state[slot])), atol=1e-6)
    if case == "zero":
        assert_array_equal(moved, 1.0)
    # No coordinate of the rotated update exceeds Adam's own bound by much, so neither does its norm.
    assert np.linalg.norm(moved - 1.0) < 30 * 0.1 * np.sqrt(20) * 1.5


def test_ndim_policies(rng):
    param, grads = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(6, 2, 3, 5, 4))
    batched, state = run(param, grads, ndim_policy="batch", precondition_frequency=2)
    for index in np.ndindex(2, 3):
        alone, own = run(param[index], grads[:, *index], precondition_frequency=2)
        assert_allclose(batched[index], alone, rtol=1e-9)
        for slot in own.keys() - {"phase"}:
            assert_allclose(state[slot][index], own[slot], atol=1e-9)
    assert state["phase"].shape == ()
    flattened, state = run(param, grads, ndim_policy="flatten", precondition_frequency=2)
    flat, _ = run(param.reshape(2, -1), grads.reshape(6, 2, -1), precondition_frequency=2)
    assert_array_equal(flattened, flat.reshape(param.shape))
    assert (state["left_cov"].shape, state["right_cov"].shape) == ((2, 2), (60, 60))


def test_a_nonfinite_matrix_of_a_batch_spoils_no_other(rng):
    param, grads = rng.normal(size=(2, 3, 4)), rng.normal(size=(3, 2, 3, 4))
    grads[0, 0, 1, 1] = np.nan
    with np.errstate(invalid="ignore"):
        moved, _ = run(param, grads, ndim_policy="batch", precondition_frequency=1)
    assert np.isnan(moved[0]).all()
    assert np.isfinite(moved[1]).all()
