"""Bases: orthonormal for any input, equal to float64's where that is well determined, and never the end of a run."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from rlx_gpu.engine.devices import stepped_on_host
from rlx_gpu.matrix import cholesky, orthogonal, products
from rlx_gpu.matrix.orthogonal import eigenbasis, orthogonal_iteration, orthonormalize
from rlx_gpu.reference import soap as reference

SIZES = (1, 2, 7, 33)
ORTHONORMAL = 1e-6  # of an entry of QᵀQ; the sums in it are float32's
BY_TORCH = 2e-6  # the same where torch multiplies: its sums of 300 terms differ with the processor


def deviation(basis):
    """The largest entry of |QᵀQ − I|."""
    basis = basis.double()
    return float((basis.mT @ basis - torch.eye(basis.shape[-1], dtype=torch.float64)).abs().max())


def orthogonal_matrices(batch, size):
    return torch.linalg.qr(torch.randn(batch, size, size, dtype=torch.float64)).Q


def covariance(values, batch=1):
    """Float32 symmetric matrices of these eigenvalues, and their eigenvectors in float64."""
    basis = orthogonal_matrices(batch, len(values))
    cov = (basis * torch.tensor(values, dtype=torch.float64)) @ basis.mT
    return ((cov + cov.mT) / 2).float(), basis


def spectra(size):
    return {
        "well": np.linspace(2, 1, size),
        "ill": np.logspace(0, -12, size),
        "deficient": np.where(np.arange(size) < max(1, size // 3), 1.0, 0.0),
        "one": np.where(np.arange(size) < 1, 1.0, 0.0),
        "equal": np.ones(size),
        "zero": np.zeros(size),
        "huge": np.logspace(30, 10, size),
        "tiny": np.logspace(-30, -37, size),
    }


def check_orthonormal(spectrum, size, batch, most=ORTHONORMAL):
    """Eigenvectors, and iterations that start from them and from a basis that has nothing to do with the matrix."""
    cov, _ = covariance(spectra(size)[spectrum], batch)
    assert deviation(eigenbasis(cov)) < most
    for basis in (eigenbasis(cov), orthogonal_matrices(batch, size).float()):
        for _ in range(2):
            basis = orthogonal_iteration(cov, basis)
            assert deviation(basis) < most


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spectrum", spectra(1))
def test_bases_are_orthonormal_whatever_the_spectrum(spectrum, size):
    check_orthonormal(spectrum, size, 2)


@pytest.mark.parametrize(("size", "base"), [(300, 256), (130, 8)], ids=["large", "many_blocks"])
@pytest.mark.parametrize("spectrum", spectra(1))
def test_large_bases_need_no_householder(spectrum, size, base, monkeypatch):
    """The kernels that multiply are tested on their own; interpreted, they would take minutes here."""
    monkeypatch.setattr(products, "on_host", lambda device: device.type == "cpu")
    monkeypatch.setattr(cholesky, "BASE", base)
    flags = []
    original = orthogonal.householder_
    monkeypatch.setattr(orthogonal, "householder_", lambda q, failed: flags.append(failed) or original(q, failed))
    check_orthonormal(spectrum, size, 1, BY_TORCH)
    assert len(flags) == 6
    assert not torch.cat(flags).any()


@pytest.mark.parametrize("size", SIZES)
def test_orthonormalize_is_the_qr_decomposition(size):
    s = torch.randn(4, size, size, dtype=torch.float64) + 2 * math.sqrt(size) * torch.eye(size, dtype=torch.float64)
    q, r = torch.linalg.qr(s)
    q *= r.diagonal(dim1=1, dim2=2).sign()[:, None]
    found = orthonormalize(s.float())
    assert deviation(found) < ORTHONORMAL
    torch.testing.assert_close(found.double(), q, rtol=0, atol=1e-5)  # s is rounded; its condition number is about 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_the_cpu_it_is_lapacks(dtype):
    s = torch.randn(3, 40, 40, dtype=dtype)
    s[1] = s[1, :, :1]
    s[2] = torch.nan
    with stepped_on_host():
        found = orthonormalize(s)
    assert found.dtype == dtype and found.is_contiguous() and found[2].isnan().all()
    eye, most = torch.eye(40, dtype=dtype), 64 * torch.finfo(dtype).eps
    assert all((q.mT @ q - eye).abs().max() < most for q in found[:2])
    assert (torch.linalg.diagonal(found[0].mT @ s[0]) > 0).all()


@pytest.mark.parametrize("columns", ["alike", "dependent", "zero"])
def test_singular_matrices_take_the_householder_path_and_no_others(columns, monkeypatch):
    s = torch.randn(3, 20, 20)
    if columns == "zero":
        s[1] = 0.0
    else:
        s[1, :, 5:] = s[1, :, :1] * (1.0 + (0.0 if columns == "dependent" else 1e-7) * torch.randn(20, 15))
    flags = []
    original = orthogonal.householder_
    monkeypatch.setattr(
        orthogonal, "householder_", lambda q, failed: flags.append(failed.clone()) or original(q, failed)
    )
    found = orthonormalize(s)
    first, second, third = flags[0].tolist()
    assert (first, third) == (0, 0)
    assert second == 1 or columns == "alike"  # which some processors' rounding lets through, off by what is allowed
    assert deviation(found) < (ORTHONORMAL if second else orthogonal.MOST_DEVIATION * torch.finfo(torch.float32).eps)
    alone = orthonormalize(s[[0, 2]])
    assert torch.equal(found[[0, 2]], alone)


@pytest.mark.parametrize("size", [7, 33])
def test_an_iteration_is_the_references(size):
    """Eigenvalues of up to 1 : 20, so that L + δI is L within 1e-5, and rounding is magnified twentyfold at most."""
    cov, _ = covariance(np.linspace(1, 0.05, size), 3)
    basis = orthogonal_matrices(3, size).float()
    _, wanted = reference.orthogonal_iteration(cov.double().numpy(), basis.double().numpy())
    torch.testing.assert_close(orthogonal_iteration(cov, basis).double(), torch.from_numpy(wanted), rtol=0, atol=2e-5)


def test_iterations_converge_to_the_eigenvectors():
    cov, basis = covariance([8.0, 4.0, 2.0, 1.0, 0.5], 2)
    found = orthogonal_matrices(2, 5).float()
    for _ in range(40):
        found = orthogonal_iteration(cov, found)
    overlap = (basis.mT @ found.double()).abs()
    torch.testing.assert_close(overlap, torch.eye(5, dtype=torch.float64).expand(2, 5, 5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_eigenbasis_is_the_references(size):
    cov, _ = covariance(np.linspace(2, 1, size) ** 2, 3)
    wanted = torch.from_numpy(reference.eigenvectors(cov.double().numpy()))
    found = eigenbasis(cov)
    # Neighbouring eigenvalues differ by 2/size, and float32's rounding turns their vectors by as much over it.
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6 * size + 1e-6)


def test_eigenvectors_of_the_null_space_stay_where_they_are():
    """Columns of eigenvalue zero are not noise after an iteration, but as before it."""
    cov, _ = covariance(spectra(40)["deficient"])
    basis = eigenbasis(cov)
    found = orthogonal_iteration(cov, basis)
    assert float((basis * found).sum(dim=-2).min()) > 0.5


def test_columns_have_a_positive_largest_entry_and_descending_eigenvalues():
    cov, _ = covariance(np.linspace(3, 1, 12), 5)
    basis = eigenbasis(cov)
    values = (basis.mT @ cov @ basis).diagonal(dim1=1, dim2=2)
    assert (values.diff(dim=-1) < 0).all()
    assert (basis.gather(-2, basis.abs().argmax(dim=-2, keepdim=True)) > 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_own_matrix(value):
    cov, _ = covariance(np.linspace(2, 1, 6), 3)
    clean = cov.clone()
    cov[1, 2, 3] = cov[1, 3, 2] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        basis = eigenbasis(cov)
    assert basis[1].isnan().all()
    assert torch.equal(basis[[0, 2]], eigenbasis(clean)[[0, 2]])
    start = orthogonal_matrices(3, 6).float()
    found = orthogonal_iteration(cov, start)
    assert found[1].isnan().any()
    assert torch.equal(found[[0, 2]], orthogonal_iteration(clean, start)[[0, 2]])


@pytest.mark.parametrize("how", ["error", "not_finite"])
def test_a_failing_solver_is_replaced_with_a_warning(how, monkeypatch):
    cov, _ = covariance(np.linspace(2, 1, 6), 3)
    wanted, solve, dtypes = eigenbasis(cov), torch.linalg.eigh, []

    def failing(matrices):
        dtypes.append(matrices.dtype)
        if len(dtypes) < 3:
            if how == "error":
                raise torch.linalg.LinAlgError("no convergence")
            return torch.return_types.linalg_eigh([matrices[:, 0] * math.nan, matrices * math.nan])
        return solve(matrices)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    with pytest.warns(RuntimeWarning, match=r"eigh of 3 matrices 6 x 6 failed in torch\.float") as warned:
        found = eigenbasis(cov)
    assert len(warned) == 2
    assert dtypes == [torch.float32, torch.float64, torch.float64]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_when_every_solver_fails_the_error_says_so(monkeypatch):
    def failing(matrices):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match=r"3 matrices 2 x 2 failed in torch\.float64"):
        eigenbasis(torch.eye(2).expand(3, 2, 2))


def test_inputs_are_left_alone():
    cov, _ = covariance(np.linspace(2, 1, 6), 3)
    basis = orthogonal_matrices(3, 6).float()
    given = cov.clone(), basis.clone()
    eigenbasis(cov)
    orthogonal_iteration(cov, basis)
    orthonormalize(basis)
    assert torch.equal(cov, given[0])
    assert torch.equal(basis, given[1])
