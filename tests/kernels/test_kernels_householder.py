"""Orthogonal factors on the interpreted kernel: which matrices are replaced, and what by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlx_gpu.engine import launch
from rlx_gpu.kernels import householder
from rlx_gpu.matrix import products, tiled
from rlx_gpu.matrix.products import householder_

EPS = 2.0**-24


def drawn(batch, size, seed=0):
    """Standard normal numbers."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, size, size)).astype(np.float32))


def marked(*failed):
    """Which matrices are to be replaced."""
    return torch.tensor(failed, dtype=torch.int32)


def factored(s):
    """The orthogonal factors of all matrices, by the kernel, in float64."""
    before = launch.launches["householder_kernel"]
    q = householder_(s.clone(), torch.ones(len(s), dtype=torch.int32))
    assert launch.launches["householder_kernel"] == before + 1
    return q.double().numpy()


def assert_factor(q, s):
    """QᵀQ = I and QᵀS upper triangular with a diagonal ≥ 0, each to a few roundings of every one of m reflections."""
    s = s.double().numpy()
    size = s.shape[1]
    allowed = 4 * (size + 4) * EPS
    assert np.abs(q.transpose(0, 2, 1) @ q - np.eye(size)).max() <= allowed
    r = q.transpose(0, 2, 1) @ s
    norm = np.linalg.norm(s, axis=(1, 2))[:, None]
    assert (np.abs(np.tril(r, -1)).max(axis=2) <= allowed * norm).all()
    assert (np.diagonal(r, axis1=1, axis2=2) >= -allowed * norm).all()


@pytest.mark.parametrize("size", [1, 2, 5, 16, 33])
def test_factor_of_random_matrices(size):
    s = drawn(3, size)
    assert_factor(factored(s), s)


def test_factor_over_several_tiles(monkeypatch):
    """Blocks smaller than the matrix in every direction."""
    monkeypatch.setattr(tiled, "CONSTANTS", {"COLUMN": 8, "TILE_ROWS": 4, "TILE_COLS": 8})
    s = drawn(2, 37)
    assert_factor(factored(s), s)


def test_factor_is_the_one_with_a_positive_diagonal():
    s = drawn(2, 24)
    exact, r = np.linalg.qr(s.double().numpy())
    exact *= np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
    # An error of S, relative to ‖S‖, is magnified by its condition.
    allowed = 100 * EPS * np.linalg.cond(s.double().numpy()).max()
    np.testing.assert_allclose(factored(s), exact, rtol=0, atol=allowed)


def test_only_the_matrices_marked_are_replaced():
    s = drawn(5, 8)
    out = s.clone()
    assert householder_(out, marked(0, 1, 0, 7, -1)) is out
    for index, failed in enumerate((False, True, False, True, True)):
        assert torch.equal(out[index], s[index]) != failed
    assert_factor(out[[1, 3, 4]].double().numpy(), s[[1, 3, 4]])


def deficient():
    """By name: zero and equal columns, all zeros, rank one, signs only, tiny, huge, nearly the identity."""
    size = 12
    columns, equal = drawn(1, size), drawn(1, size)
    columns[:, :, [0, 4, 11]] = 0.0
    equal[:, :, 5] = equal[:, :, 2]
    vector = drawn(1, size)[:, :, :1]
    eye = torch.eye(size)[None]
    return {
        "zero_columns": columns,
        "equal_columns": equal,
        "zero": torch.zeros(1, size, size),
        "rank_one": vector @ vector.mT,
        "signs": torch.diag(torch.tensor([1.0, -1.0] * (size // 2)))[None],
        "identity": eye,
        "tiny": 1e-38 * drawn(1, size),
        "huge": 1e37 * drawn(1, size),
        "scales": drawn(1, size) * 10.0 ** torch.arange(-18, 18, 3),
        **{f"identity_and_1e-{n}": eye + 10.0**-n * drawn(1, size) for n in (4, 8, 10, 12, 15, 20)},
    }


@pytest.mark.parametrize("name", deficient())
def test_factor_of_difficult_matrices(name):
    s = deficient()[name]
    assert_factor(factored(s), s)


def test_a_diagonal_matrix_gives_its_signs():
    q = factored(deficient()["signs"])
    np.testing.assert_allclose(q[0], np.diag([1.0, -1.0] * 6), rtol=0, atol=4 * EPS)


def test_nan_does_not_reach_other_matrices():
    s = drawn(2, 8)
    bad = s.clone()
    bad[0, 3, 2] = float("nan")
    q = factored(bad)
    assert np.isnan(q[0]).any()
    np.testing.assert_array_equal(q[1], factored(s)[1])


def test_nothing_to_do():
    assert householder_(torch.empty(0, 4, 4), marked()).shape == (0, 4, 4)
    assert householder_(torch.empty(2, 0, 0), marked(1, 1)).shape == (2, 0, 0)


def test_torch_gives_the_same_without_kernels(monkeypatch):
    s = drawn(3, 16)
    wanted = factored(s)
    monkeypatch.setattr(products, "on_host", lambda device: True)
    found = householder_(s.clone(), marked(1, 1, 1))
    condition = np.linalg.cond(s.double().numpy()).max()
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=200 * EPS * condition)
    assert torch.equal(householder_(s.clone(), marked(0, 0, 0)), s)


@pytest.mark.parametrize(
    ("s", "failed", "message"),
    [
        (drawn(2, 4).half(), marked(1, 1), "s: torch.float16"),
        (drawn(2, 4)[:, :, :3], marked(1, 1), r"s: .*\(2, 4, 3\)"),
        (drawn(2, 4).mT, marked(1, 1), "s: .*contiguous"),
        (drawn(2, 4), marked(1), r"failed: torch.int32 \(1,\), .*\(2,\)"),
        (drawn(2, 4), marked(1, 1) > 0, "failed: torch.bool"),
    ],
)
def test_what_does_not_fit_is_named(s, failed, message):
    with pytest.raises(ValueError, match=message):
        householder_(s, failed)


def test_the_columns_of_a_block_are_not_fewer_than_threads():
    """Else two threads would hold one entry of a column, and one could overwrite what the other has yet to read."""
    threads = 32 * householder.LAUNCH_OPTIONS["num_warps"]
    assert householder.CONSTANTS["COLUMN"] >= threads
    assert householder.CONSTANTS["TILE_ROWS"] * householder.CONSTANTS["TILE_COLS"] >= threads
