"""What each update rule must do, worked out by hand rather than by another implementation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from reference_runs import BOUNDED, hyper_of, run

from rlx_gpu.reference import algorithms
from rlx_gpu.reference.hyper import COUPLED_DECAY, DECOUPLED_DECAY
from rlx_gpu.reference.matrices import has_fallback

SHAPES = {"scalar": (), "one": (1,), "vector": (7,), "matrix": (3, 5), "cube": (2, 3, 4), "empty": (0, 3)}
ALL = sorted(algorithms())
MATRIX = [name for name in ALL if has_fallback(algorithms()[name])]
FREQUENT = {"SOAP": {"precondition_frequency": 1}}


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def trajectory(rng, shape, steps=5):
    """A random start and gradients."""
    return rng.normal(size=shape), rng.normal(size=(steps, *shape))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.filterwarnings("error")
def test_update_is_pure_and_keeps_shapes(name, shape, rng):
    algorithm, hyper = algorithms()[name], hyper_of(name, weight_decay=0.1)
    param, grads = trajectory(rng, shape)
    state = algorithm.init_state(shape, **hyper)
    slots = {slot: value.shape for slot, value in state.items()}
    for step, grad in enumerate(grads, start=1):
        inputs = [param, grad, *state.values()]
        before = [value.copy() for value in inputs]
        new_param, new_state = algorithm.update(param, grad, state, step, **hyper)
        for value, copy in zip(inputs, before, strict=True):
            assert_array_equal(value, copy)
        assert {slot: np.shape(value) for slot, value in new_state.items()} == slots
        assert np.shape(new_param) == shape
        assert np.asarray(new_param).dtype == np.float64
        assert not np.shares_memory(new_param, grad)
        assert not any(np.shares_memory(value, grad) for value in new_state.values())
        param, state = np.asarray(new_param), {slot: np.asarray(value) for slot, value in new_state.items()}


@pytest.mark.parametrize("name", ALL)
def test_zero_gradients_still_decay(name):
    param = np.linspace(-2, 2, 12).reshape(3, 4)
    decayed, _ = run(name, param, np.zeros((3, 3, 4)), weight_decay=0.2)
    moved = np.abs(param) > 0
    assert np.all(np.abs(decayed[moved]) < np.abs(param[moved]))
    still, _ = run(name, param, np.zeros((3, 3, 4)), weight_decay=0.0)
    assert_array_equal(still, param)


def decaying_as(decay):
    """The optimizers whose weight decay is declared to be this one, whatever its default."""
    return [name for name in ALL if decay.doc in {hyper.doc for hyper in algorithms()[name].HYPERPARAMETERS}]


DECOUPLED, COUPLED = decaying_as(DECOUPLED_DECAY), decaying_as(COUPLED_DECAY)
OTHER_DECAY = ["LAMB"]  # has a test of its own


def test_every_optimizer_declares_how_it_decays():
    assert sorted([*DECOUPLED, *COUPLED, *OTHER_DECAY]) == ALL


@pytest.mark.parametrize("param", [np.array([3.0, -4.0]), np.array([[3.0, -4.0]])], ids=["vector", "matrix"])
@pytest.mark.parametrize("name", DECOUPLED)
def test_decoupled_decay_shrinks_by_lr_times_decay(name, param):
    """In every step but the first, which may set state alone."""
    zeros, given = np.zeros((3, *param.shape)), {"lr": 0.1, "weight_decay": 0.2}
    begun, _ = run(name, param, zeros[:1], **given)
    decayed, _ = run(name, param, zeros, **given)
    assert_allclose(decayed, begun * (1 - 0.1 * 0.2) ** 2, rtol=1e-15)


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_decay_is_a_gradient(name, rng):
    start, grads = trajectory(rng, (5,), steps=3)
    coupled, _ = run(name, start, grads, weight_decay=0.2)
    param, state = start, None
    for step, grad in enumerate(grads, start=1):
        param, state = run(name, param, [grad + 0.2 * param], state=state, first=step, weight_decay=0.0)
    assert_allclose(coupled, param, rtol=1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("name", ALL)
def test_nonfinite_gradients_propagate(name, bad, rng):
    """Into the parameter, unless a sign or a clip bounds what an infinity does; a first step may set state alone."""
    start, grads = trajectory(rng, (5,), steps=3)
    for when in (0, 1):
        spoilt = grads.copy()
        spoilt[when, 2] = bad
        with np.errstate(all="ignore"):
            param, state = run(name, start, spoilt)
        assert not all(np.isfinite(value).all() for value in (param, *state.values()))
    bounded = bool(np.isfinite(param[2]))
    assert bounded == (name in BOUNDED and bad == np.inf), f"{name}: see BOUNDED in reference_runs.py"


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("name", MATRIX)
def test_nonfinite_gradients_spoil_the_whole_matrix(name, bad, rng):
    param, grads = trajectory(rng, (4, 5), steps=3)
    for when in (0, 2):
        spoilt = grads.copy()
        spoilt[when, 1, 2] = bad
        with np.errstate(all="ignore"):
            assert not np.isfinite(run(name, param, spoilt, **FREQUENT.get(name, {}))[0]).any()


def test_sgd_by_hand():
    param, grads = np.array([1.0]), np.array([[2.0], [3.0]])
    assert_allclose(run("SGD", param, grads)[0], 1 - 0.1 * 2 - 0.1 * 3)
    # b = 2, then 0.5·2 + (1 − 0.2)·3 = 3.4: the first step is not dampened
    damped, state = run("SGD", param, grads, momentum=0.5, dampening=0.2)
    assert_allclose(damped, 1 - 0.1 * 2 - 0.1 * 3.4)
    assert_allclose(state["momentum_buffer"], 3.4)
    # b = 2 and u = 2 + 0.5·2, then b = 4 and u = 3 + 0.5·4
    assert_allclose(run("SGD", param, grads, momentum=0.5, nesterov=True)[0], 1 - 0.1 * 3 - 0.1 * 5)


def test_adam_first_step_is_lr_long(rng):
    param, grads = trajectory(rng, (9,), steps=1)
    assert_allclose(run("Adam", param, grads, eps=0)[0], param - 0.1 * np.sign(grads[0]), rtol=1e-14)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_amsgrad_never_forgets_the_largest_second_moment(name):
    grads = np.array([[10.0], [0.0], [0.0]])
    _, state = run(name, np.ones(1), grads, amsgrad=True, betas=(0.9, 0.9))
    assert_allclose(state["max_exp_avg_sq"], 10.0)
    assert_allclose(state["exp_avg_sq"], 10 * 0.9**2)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_amsgrad_by_hand(name):
    betas = (0.0, 0.5)
    param, _ = run(name, np.zeros(1), np.array([[4.0], [1.0]]), amsgrad=True, betas=betas, eps=0, weight_decay=0)
    # v = 8, then 4.5 < 8; v̂ = 8/0.5, then 8/0.75
    assert_allclose(param, -0.1 * 4 / np.sqrt(16) - 0.1 * 1 / np.sqrt(8 / 0.75))


def test_nadamw_first_step_by_hand():
    grad, beta1 = 0.5, 0.9
    look_ahead = beta1 * (1 - beta1) * grad / (1 - beta1**2) + (1 - beta1) * grad / (1 - beta1)
    param, _ = run("NAdamW", np.array([1.0]), np.array([[grad]]), eps=1e-8, weight_decay=0.01)
    assert_allclose(param, 1 - 0.1 * (look_ahead / (grad + 1e-8) + 0.01), rtol=1e-14)


def test_nadamw_schedule_by_hand():
    psi, beta1, grad = 0.004, 0.9, 0.5
    mu1, mu2 = (beta1 * (1 - 0.5 * 0.96 ** (t * psi)) for t in (1, 2))
    look_ahead = mu2 * (1 - beta1) * grad / (1 - mu1 * mu2) + (1 - mu1) * grad / (1 - mu1)
    param, state = run("NAdamW", np.zeros(1), np.array([[grad]]), momentum_decay=psi, eps=0)
    assert_allclose(param, -0.1 * look_ahead / grad, rtol=1e-14)
    assert_allclose(state["mu_product"], mu1)
    assert state["mu_product"].shape == ()


@pytest.mark.parametrize(("threshold", "first"), [(4.0, 5), (5.0, 6)])
def test_radam_starts_as_momentum_and_rectifies_above_its_threshold(threshold, first):
    param, grads = np.zeros(1), np.ones((7, 1)) * 3.0
    positions = [run("RAdam", param, grads[:steps], lr=1.0, threshold=threshold)[0][0] for steps in range(8)]
    moves = -np.diff(positions)
    # With β2 = 0.999, ρ_t passes 4 at t = 5 and 5 at t = 6; until then the step is m̂ = 3.
    rho_inf, t = 1999.0, np.arange(1, 8)
    rho = rho_inf - 2 * t * 0.999**t / (1 - 0.999**t)
    assert_array_equal(rho > threshold, t >= first)
    assert_allclose(moves[: first - 1], 3.0)
    rho = rho[first - 1 :]
    rectifier = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    assert_allclose(moves[first - 1 :], rectifier, rtol=1e-6)  # eps stands beside √v, which is small by then


def test_radam_decays_decoupled_as_adamw_does():
    param, grads = np.full(3, 2.0), np.zeros((2, 3))
    decoupled, _ = run("RAdam", param, grads, lr=0.1, weight_decay=0.5, decoupled_weight_decay=True)
    assert_allclose(decoupled, 2.0 * 0.95**2, rtol=1e-14)
    coupled, _ = run("RAdam", param, grads, lr=0.1, weight_decay=0.5)
    assert_allclose(coupled, 1.9 - 0.1 * (0.1 * 1.0 + 0.1 * 0.95 - 0.01 * 1.0) / 0.19, rtol=1e-14)


def test_radam_never_rectifies_with_a_short_memory(rng):
    param, grads = trajectory(rng, (4,), steps=20)
    moved, _ = run("RAdam", param, grads, betas=(0.0, 0.5))
    assert_allclose(moved, param - 0.1 * grads.sum(axis=0))


def test_qhadamw_with_unit_nus_is_adamw(rng):
    param, grads = trajectory(rng, (3, 4))
    shared = {"betas": (0.9, 0.99), "weight_decay": 0.1, "eps": 1e-6}
    ours, state = run("QHAdamW", param, grads, nus=(1, 1), **shared)
    theirs, expected = run("AdamW", param, grads, **shared)
    assert_allclose(ours, theirs, rtol=1e-14)
    for slot in expected:
        assert_array_equal(state[slot], expected[slot])


def test_qhadamw_with_zero_nus_is_signed_descent(rng):
    param, grads = trajectory(rng, (6,))
    moved, _ = run("QHAdamW", param, grads, nus=(0, 0), eps=0, weight_decay=0)
    assert_allclose(moved, param - 0.1 * np.sign(grads).sum(axis=0))


def test_lion_takes_the_sign_before_it_updates_the_momentum():
    state = {"exp_avg": np.array([1.0, 1.0, 0.0])}
    grad = np.array([-8.0, -10.0, 0.0])  # c = 0.1, -0.1, 0 with β1 = 0.9
    param, new_state = run("Lion", np.zeros(3), [grad], state=state, betas=(0.9, 0.5))
    assert_array_equal(param, [-0.1, 0.1, 0.0])
    assert_allclose(new_state["exp_avg"], [-3.5, -4.5, 0])


def test_sophia_clips_at_rho_and_divides_by_the_hessian():
    state = {"exp_avg": np.zeros(4), "hessian": np.array([0.0, 100.0, 2.0, -5.0])}
    grad = np.array([1.0, 1.0, -1.0, -1.0])
    param, new_state = run("Sophia", np.zeros(4), [grad], state=state, betas=(0.9, 0.99), gamma=0.5, rho=0.05)
    # m = ±0.1; m/(γh) = 0.1/50 inside the bound, −0.1/1 outside; no or negative curvature: the bound
    assert_allclose(param, -0.1 * np.array([0.05, 0.002, -0.05, -0.05]))
    assert_array_equal(new_state["hessian"], state["hessian"])


def test_sophia_hessian_is_a_moving_average():
    sophia = algorithms()["Sophia"]
    state = {"exp_avg": np.array([7.0]), "hessian": np.array([2.0])}
    updated = sophia.update_hessian(state, np.array([10.0]), betas=(0.9, 0.75))
    assert_allclose(updated["hessian"], 0.75 * 2 + 0.25 * 10)
    assert_array_equal(updated["exp_avg"], [7.0])
    assert_array_equal(state["hessian"], [2.0])


def test_lamb_step_is_lr_times_the_parameter_norm(rng):
    param, grads = trajectory(rng, (4, 5), steps=1)
    moved, _ = run("LAMB", param, grads, weight_decay=0.3)
    assert_allclose(np.linalg.norm(moved - param), 0.1 * np.linalg.norm(param))


def test_lamb_trusts_zero_parameters_fully(rng):
    _, grads = trajectory(rng, (6,), steps=1)
    moved, _ = run("LAMB", np.zeros(6), grads, eps=0)
    assert_allclose(moved, -0.1 * np.sign(grads[0]))


def test_lamb_without_bias_correction_by_hand():
    param, _ = run("LAMB", np.zeros(1), np.array([[2.0]]), bias_correction=False, betas=(0.9, 0.99), eps=0)
    assert_allclose(param, -0.1 * (0.1 * 2) / np.sqrt(0.01 * 4))


def test_mars_clips_the_corrected_gradient_of_a_tensor(rng):
    param, grads = trajectory(rng, (8,), steps=1)
    for grad in (100 * grads[0], 1e-3 * grads[0]):
        corrected = grad * (1 + 0.025 * 0.95 / 0.05)
        corrected = corrected / max(1, np.linalg.norm(corrected))
        _, state = run("MARS", param, [grad])
        assert_allclose(state["exp_avg"], 0.05 * corrected)
        assert_array_equal(state["last_grad"], grad)
    _, free = run("MARS", param, 100 * grads, clip_c=False)
    assert_allclose(free["exp_avg"], 0.05 * 100 * grads[0] * (1 + 0.025 * 0.95 / 0.05))


def test_mars_without_correction_is_adamw(rng):
    param, grads = trajectory(rng, (4, 3))
    shared = {"betas": (0.9, 0.99), "weight_decay": 0.1}
    ours, _ = run("MARS", param, grads, gamma=0, clip_c=False, **shared)
    assert_allclose(ours, run("AdamW", param, grads, **shared)[0], rtol=1e-14)


def test_adafactor_is_exact_on_rank_one_squares(rng):
    """Where g² is an outer product its row and column means lose nothing: the update is the sign."""
    grad = np.outer(rng.uniform(1, 2, 4), rng.uniform(1, 2, 6)) * rng.choice([-1, 1], (4, 6))
    moved, state = run("Adafactor", np.zeros((4, 6)), [grad])
    assert_allclose(moved, -0.1 * np.sign(grad), rtol=1e-12)
    assert_allclose(state["row_var"], np.mean(grad**2, axis=1))
    assert_allclose(state["col_var"], np.mean(grad**2, axis=0))


def test_adafactor_clips_the_update_rms():
    grads = np.array([[1.0, 1.0], [100.0, 1.0]])
    start, state = run("Adafactor", np.zeros(2), grads[:1])
    adafactor = algorithms()["Adafactor"]
    moved, _ = adafactor.update(start, grads[1], state, 2, **hyper_of("Adafactor", clip_threshold=0.5))
    assert_allclose(np.sqrt(np.mean((moved - start) ** 2)), 0.1 * 0.5)


def test_adafactor_relative_step():
    param = np.array([3.0, 4.0])
    rms = np.sqrt(12.5)
    adafactor = algorithms()["Adafactor"]
    hyper = {**hyper_of("Adafactor"), "lr": None}
    for step in (1, 40_000):
        moved, _ = adafactor.update(param, np.ones(2), {"variance": np.ones(2)}, step, **hyper)
        assert_allclose(moved, param - min(1e-2, step**-0.5) * rms, rtol=1e-12)
    scaled, _ = adafactor.update(param, np.ones(2), {"variance": np.ones(2)}, 1, lr_scale=0.5, **hyper)
    assert_allclose(scaled, param - 0.5e-2 * rms)
    small, _ = adafactor.update(np.zeros(2), np.ones(2), {"variance": np.ones(2)}, 1, **hyper)
    assert_allclose(small, -1e-2 * 1e-3)
