"""The matrix optimizers on a GPU: the reference's numbers, no waiting, and no more memory than they say."""

from __future__ import annotations

import pytest
import torch
from matrix_models import Pair, as_array, assert_below

import rlx_gpu
from rlx_gpu import optim
from rlx_gpu.engine import launch
from rlx_gpu.matrix import newton_schulz as routine
from rlx_gpu.matrix.orthogonal import eigenbasis, orthogonal_iteration
from rlx_gpu.matrix.products import matmul, symmetric_product

pytestmark = pytest.mark.gpu
LARGE = {"first": (160, 384), "second": (160, 384), "tall": (520, 130), "odd": (257, 129), "vector": (300,)}
DTYPES = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-20}


@pytest.mark.parametrize("shapes", [None, LARGE], ids=["small", "large"])
def test_muon(shapes):
    pair = Pair("Muon", {"ns_dtype": "float32", "ndim_policy": "batch"}, shapes, "cuda")
    for _ in range(3):
        pair.step()
    assert_below(pair.errors(), 1e-5)
    assert_below(pair.slot_errors(), 1e-6)


@pytest.mark.parametrize("shapes", [None, LARGE], ids=["small", "large"])
def test_kronpsgd(shapes):
    pair = Pair("KronPSGD", {"ndim_policy": "batch"}, shapes, "cuda")
    for _ in range(20):
        pair.step()
    assert_below(pair.errors(), 1e-3)
    assert_below(pair.slot_errors(), 1e-3)


@pytest.mark.parametrize("shapes", [None, LARGE], ids=["small", "large"])
def test_soap(shapes):
    """From a state whose bases are well determined."""
    pair = Pair("SOAP", {"precondition_frequency": 7, "ndim_policy": "batch"}, shapes, "cuda")
    pair.warm_up(12)
    for _ in range(20):
        pair.step()
    assert_below(pair.errors(), 1e-3)


def test_soap_from_the_start():
    pair = Pair("SOAP", {"stagger": False}, {"square": (128, 128), "other": (128, 128)}, "cuda")
    for _ in range(12):
        pair.step()
    assert_below(pair.errors(), 1e-3)


@pytest.mark.parametrize("tf32", [False, True], ids=["ieee", "tf32"])
def test_float32_products_are_exact_whatever_torch_is_told(tf32):
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        for batch, m, n in ((4, 1024, 1024), (1, 1024, 1024), (3, 300, 77), (2, 33, 2000)):  # the first one is split
            x, y = (torch.randn(batch, m, n, device="cuda") for _ in range(2))
            for got, want in (
                (symmetric_product(x), x.double() @ x.double().mT),
                (matmul(x, y.mT), x.double() @ y.double().mT),
            ):
                assert (got - want).norm() <= 2e-6 * want.norm()
        assert torch.backends.cuda.matmul.allow_tf32 == tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_infinities_and_nans_of_split_products_are_sgemms():
    x, y = torch.randn(2, 4, 1024, 1024, device="cuda")
    x[0, 3, 5], x[1, 7, 9], y[2, 11, 13] = float("inf"), float("nan"), float("-inf")
    before = launch.launches["split_kernel"]
    got = matmul(x, y)
    assert launch.launches["split_kernel"] == before + 2
    want = torch.bmm(x, y)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(torch.where(got.isinf(), got, 0.0), torch.where(want.isinf(), want, 0.0))


@pytest.mark.cublas
@pytest.mark.parametrize("shape", [(1, 2048, 2048), (4, 512, 512), (3, 130, 200), (2, 1000, 1000)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_symmetric_product(shape, dtype):
    x = torch.randn(shape, device="cuda").to(dtype)
    for view in (x, x.mT.contiguous().mT):
        got = symmetric_product(view)
        want = view.double() @ view.double().mT
        assert ((got - want).abs() <= DTYPES[dtype] * want.abs() + 1e-4 * want.abs().max()).all()
        again = symmetric_product(view, out=got.clone(), alpha=0.5, beta=-2.0, c=got)
        want = 0.5 * want - 2.0 * got.double()
        assert ((again - want).abs() <= DTYPES[dtype] * want.abs() + 1e-4 * want.abs().max()).all()


@pytest.mark.cublas
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 512, 512), (1, 1536, 1024), (3, 256, 2048), (2, 100, 36), (1, 1, 70)], ids=str)
def test_newton_schulz(shape, dtype):
    """In float32 the reference's numbers; in 16 bits, singular values as near to 1 as the coefficients promise."""
    x = torch.randn(shape, device="cuda")
    got = rlx_gpu.newton_schulz(x, coefficients="polar_express", steps=8, dtype=dtype)
    if dtype == torch.float32:
        want = rlx_gpu.reference.newton_schulz(x.double().cpu().numpy(), 8, "polar_express")
        assert abs(as_array(got) - want).max() <= 1e-5  # of singular values near 1
    values = torch.linalg.svdvals(got.double())
    assert values.max() < 1.15
    assert values.median() > 0.85


@pytest.mark.cublas
@pytest.mark.parametrize("form", ["plain", "symmetric", "gram"])
def test_the_forms_agree(form):
    x = torch.randn(2, 300, 1200, device="cuda", dtype=torch.float64)
    x /= x.norm(dim=(-2, -1), keepdim=True)
    triples = routine.schedule("keller", 5)
    want = x.clone()
    for a, b, c in triples:
        gram = want @ want.mT
        want = a * want + (b * gram + c * gram @ gram) @ want
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01), (torch.float32, 1e-5)):
        got = routine.FORMS[form](x.to(dtype), triples)
        assert (got - want).norm() <= tolerance * want.norm(), dtype


@pytest.mark.cublas
def test_bases():
    x = torch.randn(3, 200, 900, device="cuda")
    cov = x @ x.mT
    basis = eigenbasis(cov)
    eye = torch.eye(200, device="cuda")
    assert (basis.mT @ basis - eye).abs().max() < 1e-6
    diagonal = basis.double().mT @ cov.double() @ basis.double()
    assert (diagonal - torch.diag_embed(diagonal.diagonal(dim1=1, dim2=2))).abs().max() < 1e-5 * diagonal.abs().max()
    for matrix in (cov, torch.zeros_like(cov), x[:, :, :5] @ x[:, :, :5].mT):
        moved = orthogonal_iteration(matrix, basis)
        assert (moved.mT @ moved - eye).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["Muon", "SOAP", "KronPSGD"])
def test_a_step_between_refreshes_never_synchronises(name, no_sync):
    weights = [torch.nn.Parameter(torch.randn(s, device="cuda")) for s in ((256, 128), (256, 128), (96, 320), (64,))]
    optimizer = getattr(optim, name)(weights, lr=0.01)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    with no_sync():
        for _ in range(12):  # a whole period of SOAP's, with its changes of basis
            for weight in weights:
                weight.grad.mul_(1.1)
            optimizer.step()


@pytest.mark.parametrize(("name", "copies"), [("Muon", 2.0), ("SOAP", 9.0), ("KronPSGD", 9.0)])
def test_memory_beyond_state(name, copies):
    """Of float32 gradients, what a step takes for its duration; nothing stays. KronPSGD's factors are squares.

    Four of SOAP's and KronPSGD's copies are the two operands of a product, each split in two.
    """
    weights = [torch.nn.Parameter(torch.randn(1024, 1024, device="cuda")) for _ in range(4)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = getattr(optim, name)(weights, lr=0.01, **({"stagger": False} if name == "SOAP" else {}))
    for _ in range(2):
        optimizer.step()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - held <= copies * 4 * 4 * 1024**2 + 2**20
    assert torch.cuda.memory_allocated() <= held + 2**16


def test_muon_is_torchs():
    """torch.optim.Muon's steps, to what bfloat16 leaves; and its checkpoint goes on here."""
    shapes = ((128, 128), (256, 96), (96, 256))
    own, theirs = ([torch.nn.Parameter(torch.zeros(s, device="cuda")) for s in shapes] for _ in range(2))
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    torchs = torch.optim.Muon(theirs, **options)
    ours = optim.Muon(own, **options)
    generator = torch.Generator("cuda").manual_seed(0)
    for step in range(6):
        for one, other in zip(own, theirs, strict=True):
            one.grad = torch.randn(one.shape, device="cuda", generator=generator)
            other.grad = one.grad.clone()
        torchs.step()
        ours.step()
        if step == 2:
            ours = optim.Muon(own, lr=1.0)
            ours.load_state_dict(torchs.state_dict())
    for one, other in zip(own, theirs, strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()
