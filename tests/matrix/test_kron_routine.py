"""KronPSGD's routine on batches against the float64 reference, matrix by matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kron_batch import TOLERANCE, Batch, error
from torch.utils._python_dispatch import TorchDispatchMode

from rlx_gpu.engine import launch
from rlx_gpu.matrix import kron, products
from rlx_gpu.reference import kronpsgd as reference

CHECKED = (1, 2, 20)


@pytest.fixture(autouse=True)
def products_by_torch(monkeypatch):
    """Interpreted, the kernels that multiply take minutes; one test undoes this."""
    monkeypatch.setattr(products, "on_host", lambda device: True)


def transposed(grads):
    """The same gradients, held column by column."""
    return grads.mT.contiguous().mT


CASES = {
    "square": ((16, 16), {}),
    "tall": ((24, 7), {}),
    "wide": ((7, 24), {}),
    "odd": ((33, 17), {}),
    "row": ((1, 9), {}),
    "column": ((9, 1), {}),
    "one": ((1, 1), {}),
    "vector": ((13,), {}),
    "vector of one": ((1,), {}),
    "tall, both dense": ((12, 5), {"max_precond_skew": 10.0}),
    "both diagonal": ((12, 10), {"max_precond_dim": 4}),
    "no momentum": ((9, 11), {"momentum": 0.0}),
    "clipped": ((8, 8), {"clip_update_rms": 0.3}),
    "other rates": ((8, 8), {"precond_lr": 0.5, "precond_beta": 0.3, "momentum": 0.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_parameters_and_slots_agree_with_the_reference(case):
    shape, given = CASES[case]
    batch = Batch(3, shape, **given)
    for step in range(1, max(CHECKED) + 1):
        batch.step(batch.gradients())
        if step in CHECKED:
            batch.check()


@pytest.mark.parametrize("shape", [(20, 20), (9, 24)], ids=str)
def test_products_by_the_kernels(shape, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(products, "SPLIT_SIDE", 0)
    monkeypatch.setattr(products, "SPLIT_WORK", 0)
    batch, before = Batch(2, shape), launch.launches.copy()
    for _ in range(2):
        batch.step(batch.gradients())
    batch.check()
    made = launch.launches - before
    assert made["symmetric_product_kernel"] > 0 and made["split_kernel"] > 0


def test_another_rate_of_the_factors_fails_the_check():
    batch = Batch(2, (8, 8))
    batch.step(batch.gradients(), precond_lr=0.101)
    errors = batch.errors()
    assert errors["exp_avg"] <= TOLERANCE < min(errors["left_factor"], errors["right_factor"], errors["param"])


@pytest.mark.parametrize("shape", [(12, 12), (7, 10)])
def test_gradients_held_column_by_column(shape):
    batch = Batch(2, shape)
    for _ in range(3):
        batch.step(batch.gradients(), layout=transposed)
    batch.check()


@pytest.mark.parametrize("shape", [(9, 9), (6, 11), (10,)], ids=str)
@pytest.mark.parametrize("due", ["side by side", "scattered"])
def test_a_batch_with_different_steps(shape, due):
    """From step 2500 on the factors are updated about every seventh step; which step depends on t alone."""
    starts = [2500, 2500, 2503, 2510] if due == "side by side" else [2500, 2503, 2500, 2510]
    batch = Batch(4, shape, starts=starts)
    seen = set()
    for _ in range(20):
        before = [kron.factor_updates(step) for step in batch.steps]
        batch.step(batch.gradients())
        batch.check()
        seen.add(tuple(kron.factor_updates(step) > old for step, old in zip(batch.steps, before, strict=True)))
    assert (True, True, False, False) in seen if due == "side by side" else (True, False, True, False) in seen
    assert (False,) * 4 in seen


def test_updates_of_the_factors_are_the_references():
    """Around each of the first ten thousand steps, and far out."""
    steps = [*range(10_000), *range(10**7, 10**7 + 100)]
    assert [kron.factor_updates(step) for step in steps] == [reference.factor_updates(step) for step in steps]


def test_matrices_not_due_keep_their_factors_bit_by_bit():
    due = next(t for t in range(2500, 2600) if kron.factor_updates(t) > kron.factor_updates(t - 1))
    batch = Batch(3, (8, 8), starts=[due - 2, due - 1, due - 2])
    for _ in range(2):
        kept = {slot: tensor.clone() for slot, tensor in batch.state.items()}
        batch.step(batch.gradients())
    for slot in ("left_factor", "right_factor", "left_lipschitz", "right_lipschitz"):
        same = [torch.equal(new, old) for new, old in zip(batch.state[slot], kept[slot], strict=True)]
        assert same == [False, True, False], slot


@pytest.mark.parametrize("shape", [(10, 10), (6, 14)])
def test_rank_deficient_gradients(shape):
    batch = Batch(2, shape)
    for _ in range(20):
        left, right = batch.rng.standard_normal((2, shape[0], 2)), batch.rng.standard_normal((2, 2, shape[1]))
        batch.step((left @ right).astype(np.float32))
    batch.check()


@pytest.mark.parametrize("shape", [(8, 8), (5, 9), (11,)], ids=str)
def test_zero_gradients_leave_the_factors_alone(shape):
    """Among them the first one of a matrix, and one beside a matrix that has a gradient."""
    batch = Batch(2, shape)
    for present in ((0, 1), (0, 0), (1, 1), (1, 0), (1, 1)):
        factors = {slot: tensor.clone() for slot, tensor in batch.state.items() if slot != "exp_avg"}
        batch.step(batch.gradients() * np.float32(present).reshape(2, *[1] * len(shape)))
        batch.check()
        for slot, before in factors.items():
            same = [torch.equal(new, old) for new, old in zip(batch.state[slot], before, strict=True)]
            assert same == [not one for one in present], slot


def test_a_first_gradient_between_updates_of_the_factors():
    """The factors are k·I of every gradient until they have been updated once."""
    starts = [4005, 4050]
    batch = Batch(2, (7, 7), starts=starts)
    for _ in range(20):
        batch.step(batch.gradients())
        batch.check()
    assert [kron.factor_updates(start + 20) - kron.factor_updates(start) for start in starts] == [1, 1]


@pytest.mark.parametrize("size", [1e-12, 1e12])
@pytest.mark.parametrize("shape", [(9, 9), (5, 9), (11,)], ids=str)
def test_gradients_of_any_size(shape, size):
    batch = Batch(2, shape)
    for _ in range(20):
        batch.step(batch.gradients() * np.float32(size))
    batch.check()


def test_gradients_that_suddenly_grow_and_shrink():
    """Beyond the squares that float32 holds of the covariance PPᵀ: its entries are near 1e24 here."""
    batch = Batch(2, (9, 9))
    for size in (1.0, 1.0, 1e12, 1e12, 1e-12):
        batch.step(batch.gradients() * np.float32(size))
        batch.check()


@pytest.mark.parametrize("spread", [1e6, 1e-6], ids=["one huge", "one tiny"])
def test_one_singular_value_unlike_the_others(spread):
    """In the same directions every step. After some sixty the rule has grown the smallest direction so far that the
    gradients' own rounding decides it: the reference then does as badly with gradients off by 6e-8."""
    batch = Batch(2, (8, 8))
    basis = np.linalg.qr(batch.rng.standard_normal((2, 2, 8, 8)))[0]
    values = np.array([spread] + [1.0] * 7)
    for _ in range(20):
        noise = 1 + 0.1 * batch.rng.standard_normal((2, 1, 8))
        batch.step((basis[0] * (values * noise) @ basis[1].swapaxes(-1, -2)).astype(np.float32))
    batch.check()


def test_both_factors_are_balanced_at_every_hundredth_update():
    batch = Batch(3, (8, 12), starts=[97, 0, 98])
    for step in range(1, 5):
        batch.step(batch.gradients())
        batch.check()
        largest = [kron.largest(batch.state[f"{side}_factor"]) for side in ("left", "right")]
        equal = ((largest[0] / largest[1] - 1).abs() < 1e-6).tolist()
        assert equal == [step == 3, False, step == 2]


@pytest.mark.parametrize("shape", [(8, 8), (11,)], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_reaches_its_own_matrix_only(shape, bad):
    batch = Batch(2, shape)
    for _ in range(2):
        batch.step(batch.gradients())
    grads = batch.gradients()
    grads[1].flat[3] = bad
    with np.errstate(invalid="ignore"):
        batch.step(grads)
    assert torch.isnan(batch.param[1]).any()
    assert all(torch.isfinite(tensor[0]).all() for tensor in (batch.param, *batch.state.values()))
    assert error(batch.param[:1], np.stack(batch.expected[:1]), batch.walked[:1]) <= TOLERANCE


def test_a_first_gradient_with_a_nan():
    update = kron.direction(torch.full((1, 4, 4), torch.nan), (batch := Batch(1, (4, 4))).state, batch.told())
    assert torch.isnan(update).all()


@pytest.mark.parametrize("shape", [(12, 12), (7, 20), (15,)], ids=str)
def test_bfloat16_factors_and_momentum(shape):
    """Stored values are off by up to 2⁻⁹ = 2e-3 of themselves, and P is a product of up to four factors and M, each
    rounded. Roundings of a factor add up like a random walk, against the step of at most 10% that the rule takes."""
    batch = Batch(3, shape, dtype=torch.bfloat16)
    batch.step(batch.gradients())
    batch.check(2e-2)
    for _ in range(9):
        batch.step(batch.gradients())
    batch.check(5e-2)
    assert {tensor.dtype for slot, tensor in batch.state.items() if "lipschitz" in slot} == {torch.float32}


def test_the_factors_whiten():
    """Of gradients with a Kronecker covariance, E PPᵀ = n·I and E PᵀP = m·I where the factors have settled."""
    m, n, batch = 5, 7, Batch(1, (5, 7), momentum=0.0, max_precond_skew=10.0)
    spread = [
        np.diag(np.geomspace(1, 10, size)) @ np.linalg.qr(batch.rng.standard_normal((size, size)))[0] for size in (m, n)
    ]
    whitened, raw = [], []
    for step in range(400):
        grad = (spread[0] @ batch.rng.standard_normal((m, n)) @ spread[1].T).astype(np.float32)[None]
        update = kron.direction(torch.tensor(grad), batch.state, batch.told(clip_update_rms=1e3))
        if step >= 200:
            whitened.append(update[0].double().numpy())
            raw.append(grad[0] / np.sqrt(np.mean(grad**2)))

    def extremes(samples):
        """The smallest and the largest eigenvalue of the mean PPᵀ/n and PᵀP/m."""
        means = np.mean([x @ x.T / n for x in samples], axis=0), np.mean([x.T @ x / m for x in samples], axis=0)
        spectra = [np.linalg.eigvalsh(mean) for mean in means]
        return min(spectrum[0] for spectrum in spectra), max(spectrum[-1] for spectrum in spectra)

    low, high = extremes(whitened)
    assert 0.6 < low <= high < 1.5  # the mean of 200 samples, and factors that keep moving by a tenth
    low, high = extremes(raw)
    assert high / low > 20


class Calls(TorchDispatchMode):
    """Records the torch operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(8, 8), (6, 9), (10,)], ids=str)
def test_the_number_of_launches_does_not_depend_on_the_batch(shape):
    counts = {}
    for count in (2, 7):
        batch = Batch(count, shape)
        batch.step(batch.gradients())
        grads, step = torch.tensor(batch.gradients()), batch.told()
        with Calls() as calls:
            kron.direction(grads, batch.state, step)
        counts[count] = calls.names
        reads = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "item"}
        assert not {name.split(".")[1] for name in calls.names} & reads
    assert counts[2] == counts[7]
    assert len(counts[2]) > 20
