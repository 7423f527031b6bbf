"""SOAP's routine on batches against the reference in float64, slot by slot, from states that determine the bases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matrix_steps import told

from rlx_gpu.engine.launch import launches
from rlx_gpu.kernels.rules.soap import SOAP
from rlx_gpu.matrix import soap
from rlx_gpu.matrix.soap import direction, drop_rounding_
from rlx_gpu.reference import soap as reference

HYPER = {hyper.name: hyper.default for hyper in reference.HYPERPARAMETERS} | {
    "lr": 0.1,
    "shampoo_beta": 0.9,
    "precondition_frequency": 4,
}
STEPS = 20
CASES = [
    ((1, 5, 5), {}, False),
    ((3, 8, 12), {}, False),
    ((3, 8, 12), {}, True),
    ((2, 12, 7), {}, True),
    ((2, 7, 12), {"max_precond_dim": 7}, False),
    ((2, 12, 7), {"max_precond_dim": 7}, True),
    ((2, 8, 12), {"max_precond_dim": 0}, True),
    ((2, 1, 6), {}, False),
    ((2, 6, 1), {}, True),
]  # matrices, hyperparameters, whether the parameters' memory is transposed


def gradients(shape, steps, seed=0):
    """Float32 gradients of full rank on both sides once a few are mixed, their directions unequally strong."""
    generator = torch.Generator().manual_seed(seed)
    batch, m, n = shape
    strength = torch.linspace(1.0, 0.3, m)[:, None] * torch.linspace(1.0, 0.4, n)
    return [strength * torch.randn(batch, m, n, generator=generator) for _ in range(steps)]


def settled_state(shape, hyper, before=40):
    """The reference's state, matrix by matrix, after so many steps: covariances of full rank, moments, bases."""
    states = [reference.init_state(shape[1:], **hyper) for _ in range(shape[0])]
    for step, grad in enumerate(gradients(shape, before, seed=1), 1):
        states = [advance(state, grad[i], step, hyper)[1] for i, state in enumerate(states)]
    return states


def advance(state, grad, step, hyper):
    """The reference's direction and new state."""
    chosen = {**hyper, "lr": 1.0, "weight_decay": 0.0}
    moved, state = reference.update(np.zeros(grad.shape), grad.double().numpy(), state, step, **chosen)
    return torch.from_numpy(-moved), state


def batched(states, transposed=False, dtype=torch.float32):
    """Reference states as the routine's batches; moments of a transposed parameter lie column by column."""
    batch = {}
    for slot in states[0]:
        if slot not in reference.SCALAR_SLOTS:
            batch[slot] = torch.from_numpy(np.stack([state[slot] for state in states])).float()
    for slot in ("exp_avg", "exp_avg_sq"):
        moment = batch[slot].to(dtype)
        batch[slot] = moment.mT.contiguous().mT if transposed else moment
    return batch


def rounded(states):
    """The states as float32 holds them, so that both start from the same."""
    return [
        {slot: np.asarray(np.float32(value), dtype=np.float64) for slot, value in state.items()} for state in states
    ]


def turn(hyper, steps, phases):
    return told(SOAP, hyper, steps, phase=phases)


def compare(state, states):
    """Every slot within 1e-3 of its size; moments and bases turn together, so neither hides an error of the other."""
    for slot, found in state.items():
        wanted = torch.from_numpy(np.stack([own[slot] for own in states]))
        assert found.isfinite().all(), slot
        assert (found.double() - wanted).norm() <= 1e-3 * wanted.norm() + 1e-30, slot


@pytest.mark.parametrize(("shape", "changes", "transposed"), CASES, ids=str)
def test_twenty_steps_are_the_references(shape, changes, transposed):
    hyper = {**HYPER, **changes}
    states = rounded(settled_state(shape, hyper))
    state = batched(states, transposed)
    start = launches["fused_step_kernel"]
    travelled = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for step, grad in enumerate(gradients(shape, STEPS), 41):
        results = [advance(own, grad[i], step, hyper) for i, own in enumerate(states)]
        states = [new for _, new in results]
        wanted = torch.stack([moved for moved, _ in results])
        workspace = grad.mT.contiguous().mT if transposed else grad.clone()
        address = workspace.data_ptr()
        found = direction(workspace, state, turn(hyper, [step] * shape[0], [0] * shape[0]))
        assert found.data_ptr() == address
        assert (found.double() - wanted).norm() <= 1e-3 * wanted.norm()
        travelled = travelled[0] + found, travelled[1] + wanted
    assert (travelled[0] - travelled[1]).norm() <= 1e-3 * travelled[1].norm()
    compare(state, states)
    assert launches["fused_step_kernel"] == start + STEPS, "one launch a step for the whole batch"


def test_the_first_step_takes_eigenvectors_and_moves():
    shape, hyper = (3, 6, 6), HYPER
    grad = gradients(shape, 1)[0]
    states = [reference.init_state(shape[1:], **hyper) for _ in range(shape[0])]
    state = batched(states)
    results = [advance(own, grad[i], 1, hyper) for i, own in enumerate(states)]
    found = direction(grad.clone(), state, turn(hyper, [1] * 3, [0] * 3))
    # U' of the first step is the sign of Σ, so that U is UVᵀ of the gradient's decomposition
    torch.testing.assert_close(found.double(), torch.stack([moved for moved, _ in results]), rtol=0, atol=1e-3)
    compare(state, [new for _, new in results])


def test_null_directions_take_no_step_at_first():
    """A gradient of 40 × 3 in its eigenvectors has three entries that are not rounding: ‖U‖² is 3, not 120."""
    grad = torch.randn(2, 40, 3)
    state = batched([reference.init_state((40, 3), **HYPER) for _ in range(2)])
    found = direction(grad.clone(), state, turn(HYPER, [1, 1], [0, 0]))
    torch.testing.assert_close(found.square().sum(dim=(-2, -1)), torch.full((2,), 3.0), rtol=1e-3, atol=0)


def test_rounding_is_dropped_and_nothing_else():
    x = torch.tensor([[[1.0, 2.0**-19], [-(2.0**-19), 2.0**-21]], [[1e-30, 0.0], [1e-37, math.nan]], [[0.0] * 2] * 2])
    found = drop_rounding_(x.clone())
    assert found[0].tolist() == [[1.0, 2.0**-19], [-(2.0**-19), 0.0]]
    assert found[1, 1, 1].isnan()
    assert torch.equal(found[2], x[2])


@pytest.mark.parametrize("phases", [(0, 1, 2, 3, 1), (2, 2, 0, 0, 1)], ids=str)
def test_staggered_phases_are_the_references(phases):
    """Matrices that change their bases in different steps, side by side and scattered."""
    shape, hyper = (5, 6, 9), HYPER
    states = rounded(settled_state(shape, hyper))
    states = [{**state, "phase": np.array(float(phase))} for state, phase in zip(states, phases, strict=True)]
    state = batched(states)
    for step, grad in enumerate(gradients(shape, 9), 41):
        before = state["left_basis"].clone()
        results = [advance(own, grad[i], step, hyper) for i, own in enumerate(states)]
        states = [new for _, new in results]
        found = direction(grad.clone(), state, turn(hyper, [step] * 5, phases))
        wanted = torch.stack([moved for moved, _ in results])
        assert (found.double() - wanted).norm() <= 1e-3 * wanted.norm()
        changed = (state["left_basis"] != before).flatten(1).any(dim=1)
        assert changed.tolist() == [(step - 1 + phase) % 4 == 0 for phase in phases]
    compare(state, states)


def test_matrices_at_different_steps_share_a_batch():
    """One that begins among others that go on."""
    shape, hyper = (3, 6, 6), HYPER
    states = rounded(settled_state(shape, hyper))
    states[1] = reference.init_state(shape[1:], **hyper)
    state, steps = batched(states), [41, 1, 42]
    for offset, grad in enumerate(gradients(shape, 6)):
        now = [step + offset for step in steps]
        results = [advance(own, grad[i], t, hyper) for i, (own, t) in enumerate(zip(states, now, strict=True))]
        states = [new for _, new in results]
        found = direction(grad.clone(), state, turn(hyper, now, [0] * 3))
        for i, (moved, _) in enumerate(results):
            assert (found[i].double() - moved).norm() <= 2e-3 * moved.norm()


def test_going_on_from_a_copy_in_the_middle_of_a_period_changes_no_bit():
    shape = (2, 6, 9)
    state = batched(rounded(settled_state(shape, HYPER)))
    grads = gradients(shape, 8)
    for step, grad in enumerate(grads[:3], 41):
        direction(grad.clone(), state, turn(HYPER, [step] * 2, [0, 1]))
    copy = {slot: value.clone() for slot, value in state.items()}
    for step, grad in enumerate(grads[3:], 44):
        found = direction(grad.clone(), state, turn(HYPER, [step] * 2, [0, 1]))
        again = direction(grad.clone(), copy, turn(HYPER, [step] * 2, [0, 1]))
        assert torch.equal(found, again)
    assert all(torch.equal(state[slot], copy[slot]) for slot in state)


def test_moments_may_be_stored_in_bfloat16():
    """Each step rounds them to 8 bits; bases and covariances keep float32."""
    shape = (2, 6, 9)
    states = rounded(settled_state(shape, HYPER))
    state, full = batched(states, dtype=torch.bfloat16), batched(states)
    for step, grad in enumerate(gradients(shape, 9), 41):
        found = direction(grad.clone(), state, turn(HYPER, [step] * 2, [0, 1]))
        wanted = direction(grad.clone(), full, turn(HYPER, [step] * 2, [0, 1]))
        assert (found - wanted).norm() <= 0.05 * wanted.norm()
    assert state["exp_avg"].dtype == torch.bfloat16
    assert torch.equal(state["left_basis"], full["left_basis"])


def test_a_padded_workspace_is_used_in_place():
    """The batches of gradients begin on 128-bit boundaries; what lies between them stays."""
    memory = torch.full((2, 6 * 9 + 2), 7.0)
    workspace = memory[:, : 6 * 9].view(2, 6, 9)
    grad = gradients((2, 6, 9), 1)[0]
    workspace.copy_(grad)
    states = rounded(settled_state((2, 6, 9), HYPER))
    wanted = direction(grad.clone(), batched(states), turn(HYPER, [41] * 2, [0] * 2))
    found = direction(workspace, batched(states), turn(HYPER, [41] * 2, [0] * 2))
    assert torch.equal(found, wanted)
    assert (memory[:, 6 * 9 :] == 7.0).all()


def test_not_a_number_stays_in_its_own_matrix():
    shape = (3, 6, 6)
    state = batched([reference.init_state(shape[1:], **HYPER) for _ in range(3)])
    clean = {slot: value.clone() for slot, value in state.items()}
    for step, grad in enumerate(gradients(shape, 6), 1):
        wanted = direction(grad.clone(), clean, turn(HYPER, [step] * 3, [0] * 3))
        grad[1, 2, 3] = math.nan
        found = direction(grad, state, turn(HYPER, [step] * 3, [0] * 3))
        assert found[1].isnan().any()
        assert torch.equal(found[[0, 2]], wanted[[0, 2]])


def test_zero_gradients_move_nothing():
    state = batched([reference.init_state((4, 6), **HYPER) for _ in range(2)])
    for step in range(1, 10):
        found = direction(torch.zeros(2, 4, 6), state, turn(HYPER, [step] * 2, [0] * 2))
        assert torch.equal(found, torch.zeros(2, 4, 6))
        assert all(value.isfinite().all() for value in state.values())


def test_another_basis_is_not_the_references(monkeypatch):
    """A negative control: without carrying the moments over, the comparison fails."""
    shape = (2, 6, 9)
    states = rounded(settled_state(shape, HYPER))
    state = batched(states)
    original = soap.change_bases

    def without_moments(state, selection):
        kept = {slot: state[slot].clone() for slot in soap.MOMENTS}
        original(state, selection)
        for slot, value in kept.items():
            state[slot].copy_(value)

    monkeypatch.setattr(soap, "change_bases", without_moments)
    for step, grad in enumerate(gradients(shape, 5), 41):
        states = [advance(own, grad[i], step, HYPER)[1] for i, own in enumerate(states)]
        direction(grad.clone(), state, turn(HYPER, [step] * 2, [0] * 2))
    with pytest.raises(AssertionError, match="exp_avg"):
        compare(state, states)
