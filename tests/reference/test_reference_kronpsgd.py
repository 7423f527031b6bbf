"""KronPSGD: each part of the rule, by hand."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from reference_runs import run as run_named

from rlx_gpu.reference import algorithms

kron = algorithms()["KronPSGD"]
run = partial(run_named, "KronPSGD")
DENSE = {"max_precond_skew": 1e3}  # both factors, whatever the shape


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def rms(x):
    return np.sqrt(np.mean(x**2))


def test_the_procrustes_step_by_hand_and_its_effect(rng):
    """QᵀQ is kept to the second order of the step, and the skew part shrinks; a symmetric factor stays."""
    symmetric = rng.normal(size=(4, 4))
    symmetric = symmetric @ symmetric.T + np.eye(4)
    assert_array_equal(kron.procrustes(symmetric), symmetric)
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    q = turn @ np.diag([2.0, 1.0])
    # S = (q₂₁ − q₁₂)·J, J = [[0, 1], [−1, 0]], whose norm is one; tr(JQ) = q₂₁ − q₁₂, tr(JJQ) = −tr Q
    unit = np.array([[0.0, 1.0], [-1.0, 0.0]])
    step = min(1 / 8, (q[1, 0] - q[0, 1]) / np.trace(q))
    expected = q + step * (unit @ q + step / 2 * unit @ unit @ q)
    assert_allclose(kron.procrustes(q), expected, rtol=1e-14)
    for _ in range(30):
        before, q = q, kron.procrustes(q)
        assert np.abs(q - q.T).max() <= np.abs(before - before.T).max()
    assert_allclose(q, q.T, atol=1e-8)
    assert_allclose(q.T @ q, np.diag([4.0, 1.0]), rtol=1e-2)


def test_the_first_step_by_hand(rng):
    """From k·I on both sides, with P = k⁴M̂, to one update of each factor and the update that they give."""
    grad = rng.normal(size=(3, 3))
    k = np.mean(grad**4) ** (-1 / 16)
    whitened = k**4 * grad
    factors = []
    for face in (whitened, whitened.T):
        covariance = face @ face.T
        bound = kron.bound(covariance) + 3
        factors.append(kron.procrustes(k * np.eye(3) - 0.1 / bound * (covariance - 3 * np.eye(3)) * k))
    moved, state = run(np.ones((3, 3)), [grad], weight_decay=0.2, clip_update_rms=0.5)
    assert_allclose(state["left_factor"], factors[0], rtol=1e-12, atol=1e-14)
    assert_allclose(state["right_factor"], factors[1], rtol=1e-12, atol=1e-14)
    assert_allclose(state["right_lipschitz"], kron.bound(whitened.T @ whitened) + 3, rtol=1e-12)
    direction = factors[0].T @ factors[0] @ grad @ factors[1].T @ factors[1]
    assert rms(direction) > 0.5
    assert_allclose(moved, 1 - 0.1 * (direction * 0.5 / rms(direction) + 0.2), rtol=1e-12)


def test_the_lipschitz_bound_falls_slowly_and_rises_at_once():
    factor, quiet, loud = np.eye(2), np.zeros((2, 2)), 3 * np.eye(2)
    _, rising = kron.fitted(factor, np.array(4.0), loud, 0.1, 0.9)
    assert_allclose(rising, 9 + 2)
    _, falling = kron.fitted(factor, np.array(12.0), quiet, 0.1, 0.9)
    assert_allclose(falling, 0.9 * 12 + 0.1 * 2)


@pytest.mark.parametrize(
    ("shape", "given", "left", "right"),
    [
        ((4, 4), {}, (4, 4), (4, 4)),
        ((4, 6), {}, (4, 4), (6,)),  # 6² > 24
        ((6, 4), {}, (6,), (4, 4)),
        ((4, 6), {"max_precond_skew": 1.5}, (4, 4), (6, 6)),  # 6² = 1.5 · 24 is not above it
        ((4, 6), {"max_precond_skew": 0.0}, (4,), (6,)),
        ((6, 6), {"max_precond_dim": 6}, (6, 6), (6, 6)),
        ((6, 6), {"max_precond_dim": 5}, (6,), (6,)),
    ],
    ids=str,
)
def test_long_sides_get_a_diagonal(shape, given, left, right, rng):
    _, state = run(np.zeros(shape), rng.normal(size=(3, *shape)), **given)
    assert (state["left_factor"].shape, state["right_factor"].shape) == (left, right)


def test_a_diagonal_factor_updates_by_the_diagonal_alone(rng):
    whitened, factor = rng.normal(size=(4, 6)), rng.uniform(1, 2, 4)
    updated, lipschitz = kron.fitted(factor, np.zeros(()), whitened, 0.1, 0.9)
    diagonal = np.diag(whitened @ whitened.T)
    assert_allclose(lipschitz, diagonal.max() + 6, rtol=1e-14)
    assert_allclose(updated, factor - 0.1 / lipschitz * (diagonal - 6) * factor, rtol=1e-14)


def test_the_fallback_has_one_diagonal_factor(rng):
    """k² = mean(M̂⁴)^(−¼), T = P² and c = 1; a matrix that is told so does the same as the vector of its entries."""
    grad = rng.normal(size=6)
    moved, state = run(np.zeros(6), [grad], clip_update_rms=1e9)
    k = np.mean(grad**4) ** (-1 / 8)
    square = (k**2 * grad) ** 2
    factor = k - 0.1 / (square.max() + 1) * (square - 1) * k
    assert state.keys() == {"exp_avg", "factor", "lipschitz"}
    assert_allclose(state["factor"], factor, rtol=1e-13)
    assert_allclose(moved, -0.1 * factor**2 * grad, rtol=1e-13)
    grads = rng.normal(size=(9, 6))
    flat, _ = run(np.zeros(6), grads)
    for shape, given in (((2, 3), {"matrix": False}), ((1, 2, 3), {}), ((6,), {})):
        same, _ = run(np.zeros(shape), grads.reshape(9, *shape), **given)
        assert_array_equal(same, flat.reshape(shape))


def test_the_schedule_by_hand():
    """Every step until 500, then ever fewer, 3 of 100 from step 4007 on; in all as many as the probabilities say."""
    assert [kron.factor_updates(step) for step in range(501)] == [*range(501)]
    assert_allclose(kron.expected_updates(502), 500 + np.exp(-0.001) + np.exp(-0.002), rtol=1e-15)
    assert kron.factor_updates(502) == 501
    probabilities = np.clip(np.exp(-0.001 * (np.arange(1, 10_001) - 500)), 0.03, 1)
    assert kron.factor_updates(10_000) == np.floor(probabilities.sum())
    updates = [step for step in range(1, 2001) if kron.factor_updates(step) > kron.factor_updates(step - 1)]
    assert np.diff(updates).max() in (4, 5)  # e^1.5 = 4.48 steps an update at the end
    late = [kron.expected_updates(step) - kron.expected_updates(step - 1) for step in (4006, 4007, 10**6)]
    assert_allclose(late, [np.exp(-3.506), 0.03, 0.03], rtol=1e-9)


def test_the_schedule_is_the_counter_that_states_used_to_hold():
    """The probability is added to it every step, and at 1 an update takes 1 away."""
    credit, count = 0.0, 0
    for step in range(1, 1_000_001):
        credit += kron.probability(step)
        if credit >= 1:
            credit, count = credit - 1, count + 1
        retired = kron.retired_slots(step)
        assert kron.factor_updates(step) == retired["update_count"] == count
        assert abs(retired["update_credit"] - credit) < 1e-9
    assert kron.retired_slots(0) == {"update_credit": 0.0, "update_count": 0.0}


def test_factors_rest_between_updates(rng):
    param, state = run(np.zeros((3, 3)), rng.normal(size=(3, 3, 3)))
    step = next(step for step in range(1886, 1890) if kron.factor_updates(step) == kron.factor_updates(step - 1))
    _, after = run(param, rng.normal(size=(1, 3, 3)), state=state, first=step)
    assert np.any(after["exp_avg"] != state["exp_avg"])
    for slot in after.keys() - {"exp_avg"}:
        assert_array_equal(after[slot], state[slot])


def test_balance_every_100_updates(rng, monkeypatch):
    """Both factors' largest entries meet at update 100, and P is what it was without."""
    grads = rng.normal(size=(101, 4, 6)) * np.geomspace(1, 1e-4, 6)
    param, state = run(np.zeros((4, 6)), grads[:99], **DENSE)
    largest = {slot: np.abs(state[slot]).max() for slot in ("left_factor", "right_factor")}
    assert largest["right_factor"] > 1.5 * largest["left_factor"]
    balanced_param, balanced = run(param, grads[99:100], state=state, first=100, **DENSE)
    assert_allclose(np.abs(balanced["left_factor"]).max(), np.abs(balanced["right_factor"]).max(), rtol=1e-12)
    monkeypatch.setattr(kron, "BALANCE_PERIOD", 1000)
    plain_param, plain = run(param, grads[99:100], state=state, first=100, **DENSE)
    assert np.abs(plain["right_factor"]).max() > 1.5 * np.abs(plain["left_factor"]).max()
    assert_allclose(balanced_param, plain_param, rtol=1e-10)
    assert_allclose(balanced["left_lipschitz"], plain["left_lipschitz"], rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, 4), (5,), ()], ids=str)
@pytest.mark.filterwarnings("error")
def test_a_zero_gradient_leaves_the_factors_alone(shape, rng):
    """At the first step, where none is initialised, and later."""
    slots = [slot for slot in kron.init_state(shape) if slot != "exp_avg"]
    zero = np.zeros(shape)
    param, state = run(np.ones(shape), [zero, zero], weight_decay=0.2)
    assert_allclose(param, (1 - 0.1 * 0.2) ** 2)
    for slot in slots:
        assert_array_equal(state[slot], 0)
    grads = np.asarray(rng.normal(size=(3, *shape)))
    param, state = run(param, grads, state=state, first=3)
    assert all(np.all(state[slot] != 0) for slot in slots if slot.endswith("lipschitz"))
    moved, after = run(param, [zero], state=state, first=100)  # an update that balances
    for slot in slots:
        assert_array_equal(after[slot], state[slot])
    assert np.all(moved != param)  # the average moves on


def test_the_factors_start_at_the_first_gradient_that_is_not_zero(rng):
    grad = rng.normal(size=(3, 3))
    _, late = run(np.zeros((3, 3)), [np.zeros((3, 3)), grad], momentum=0.5)
    _, early = run(np.zeros((3, 3)), [0.5 * grad / 0.75], momentum=0.5)  # M̂ = 0.5 g / (1 − 0.5²)
    assert_allclose(late["left_factor"], early["left_factor"], rtol=1e-12)
    # A step without an update only whitens; the factors count as new until an update has set their Lipschitz bound.
    assert kron.factor_updates(4999) == kron.factor_updates(5001)
    skipped, state = run(np.zeros((3, 3)), [grad], first=5000, momentum=0.0)
    k = np.mean(grad**4) ** (-1 / 16)
    assert_allclose(state["left_factor"], k * np.eye(3), rtol=1e-12)
    assert state["left_lipschitz"] == 0
    assert_allclose(skipped, -0.1 * k**4 * grad / max(1, rms(k**4 * grad) / 1.1), rtol=1e-12)
    _, state = run(skipped, [2 * grad], state=state, first=5001, momentum=0.0)
    assert_allclose(state["left_factor"], k * 2**-0.25 * np.eye(3), rtol=1e-12)


@pytest.mark.filterwarnings("error")
def test_degenerate_gradients_stay_finite(rng):
    for grads in (
        np.einsum("ti,tj->tij", rng.normal(size=(150, 5)), rng.normal(size=(150, 4))),
        np.broadcast_to(np.outer(np.arange(5.0), np.ones(4)), (150, 5, 4)),
        1e60 * rng.normal(size=(150, 5, 4)),
        1e-60 * rng.normal(size=(150, 5, 4)),
    ):
        moved, _ = run(np.zeros((5, 4)), grads, **DENSE)
        assert np.isfinite(moved).all()
        assert np.linalg.norm(moved) <= 150 * 0.1 * 1.1 * np.sqrt(20) * (1 + 1e-12)


def test_ndim_policies(rng):
    """A batch is its matrices, zero gradients and balancing included."""
    param, grads = rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(105, 2, 3, 4, 4))
    grads[:2, 0, 0], grads[98:100, 1, 1] = 0, 0
    batched, state = run(param, grads, ndim_policy="batch")
    for index in np.ndindex(2, 3):
        alone, own = run(param[index], grads[:, *index])
        assert_allclose(batched[index], alone, rtol=1e-9)
        for slot in own:
            assert_allclose(state[slot][index], own[slot], rtol=1e-8, atol=1e-10)
    flattened, state = run(param, grads[:5], ndim_policy="flatten")
    flat, _ = run(param.reshape(2, -1), grads[:5].reshape(5, 2, -1))
    assert_array_equal(flattened, flat.reshape(param.shape))
    assert (state["left_factor"].shape, state["right_factor"].shape) == ((2, 2), (48,))
