"""Inverse factors: NumPy's in float64, at any depth of the recursion, and each matrix for itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlx_gpu.matrix import cholesky, products
from rlx_gpu.matrix.cholesky import inverse_factor, whiten

DEPTHS = [(256, 255), (256, 256), (256, 257), (256, 600), (8, 7), (8, 8), (8, 9), (8, 129), (16, 200), (1, 37)]


@pytest.fixture(params=DEPTHS, ids=lambda pair: f"base{pair[0]}-{pair[1]}")
def size(request, monkeypatch):
    """A size, with blocks that make it one of a few or many; torch multiplies, since interpreted kernels are slow."""
    monkeypatch.setattr(cholesky, "BASE", request.param[0])
    monkeypatch.setattr(products, "on_host", lambda device: device.type == "cpu")
    return request.param[1]


def definite(batch, size):
    """Eigenvalues from 0.1 to 10, each matrix's four times the one's before."""
    basis = torch.linalg.qr(torch.randn(batch, size, size, dtype=torch.float64)).Q
    cov = (basis * torch.logspace(-1, 1, size, dtype=torch.float64)) @ basis.mT
    return ((cov + cov.mT) / 2 * 4.0 ** torch.arange(batch)[:, None, None]).float()


def inverses(k):
    return torch.from_numpy(np.linalg.inv(np.linalg.cholesky(k.double().numpy())))


def assert_near(got, want):
    """Relative to the norm, rounding times K's condition number of 100: 1e-5; blocks of some hundreds leave less."""
    error = torch.linalg.matrix_norm(got.double() - want) / torch.linalg.matrix_norm(want)
    assert float(error.max()) < 1e-5


def test_the_inverse_factor_is_numpys(size):
    k = definite(3, size)
    want = inverses(k)
    inverse, failed = inverse_factor(k)
    assert not failed.any()
    assert inverse.is_contiguous()
    assert torch.equal(inverse, inverse.tril())
    assert_near(inverse, want)


def test_whitening_applies_it(size):
    k, rows = definite(2, size), torch.randn(2, size, size)
    want, given = inverses(k) @ rows.double(), rows.clone()
    whitened, failed = whiten(k, rows)
    assert not failed.any()
    assert_near(whitened, want)
    assert torch.equal(rows, given)


def test_near_the_identity_whitening_rounds_only_the_change(size):
    k = torch.eye(size).expand(2, -1, -1) + 1e-4 * definite(2, size)
    rows = torch.linalg.qr(torch.randn(2, size, size)).Q
    want = inverses(k) @ rows.double()
    whitened, _ = whiten(k, rows)
    # One rounding of the sum, a unit at most of entries below 1; the change's own is a thousandth of it. A single
    # block is left to the solver, which rounds all along its sums of up to 256 terms.
    assert float((whitened.double() - want).abs().max()) < (1.1 * 2.0**-24 if size > cholesky.BASE else 2e-6)


@pytest.mark.parametrize("spoil", ["first", "last", "nan"])
def test_what_fails_stays_in_its_own_matrix(size, spoil):
    k = definite(3, size)
    clean, where = k.clone(), 0 if spoil == "first" else size - 1
    k[1, where, where] = float("nan") if spoil == "nan" else -1.0
    inverse, failed = inverse_factor(k)
    wanted, _ = inverse_factor(clean)
    assert failed.tolist() == [False, True, False]
    assert torch.equal(inverse[[0, 2]], wanted[[0, 2]])


@pytest.mark.parametrize("slices", [1, 3, 64])
def test_slices_do_not_change_the_product(slices, monkeypatch):
    monkeypatch.setattr(cholesky, "LOWER_ROWS", 130 // slices)
    lower, x = torch.randn(2, 130, 130).tril(), torch.randn(2, 130, 40)
    got = cholesky._lower_product(lower, x, torch.full((2, 130, 40), torch.nan))
    assert_near(got, lower.double() @ x.double())


def test_with_kernels(monkeypatch):
    """Their views of quarters: strides longer than rows, and transposed results."""
    monkeypatch.setattr(cholesky, "BASE", 16)
    k = definite(2, 40)
    want = inverses(k)
    inverse, failed = inverse_factor(k)
    assert not failed.any()
    assert_near(inverse, want)
