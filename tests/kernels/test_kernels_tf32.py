"""Float32 products of operands split into TF32, on the interpreted kernel, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlx_gpu.engine import launch
from rlx_gpu.kernels import tf32 as kernels
from rlx_gpu.kernels.tf32 import split_kernel
from rlx_gpu.matrix import products, tiled
from rlx_gpu.matrix.products import float32_products, matmul

EPS = 2.0**-24
TINY, HUGE = float(np.finfo(np.float32).smallest_subnormal), float(np.finfo(np.float32).max)


def nearest_tf32(x):
    """x to 10 mantissa bits, halves away from zero, in float64 arithmetic; cut where that would overflow."""
    x = x.astype(np.float64)
    spacing = 2.0 ** (np.maximum(np.frexp(x)[1] - 1, -126) - 10)
    rounded = np.copysign(np.floor(np.abs(x) / spacing + 0.5) * spacing, x)
    return np.where(np.abs(rounded) > HUGE, np.trunc(x / spacing) * spacing, rounded).astype(np.float32)


def expected(x):
    """High and low of finite numbers."""
    high = nearest_tf32(x)
    return high, nearest_tf32(x - high)


def bits(x):
    """To compare the signs of zeros as well."""
    return np.asarray(x).view(np.int32)


def random_floats(count, seed=0):
    """Finite numbers of all magnitudes, subnormal ones among them."""
    drawn = np.random.default_rng(seed).integers(0, 2**32, size=2 * count, dtype=np.uint32).view(np.float32)
    return drawn[np.isfinite(drawn)][:count]


def split_into(x, size):
    """Both parts by the kernel, and what it left of their poison behind `size` elements."""
    high, low = (torch.full((size + 40,), float("nan")) for _ in range(2))
    split_kernel[(-(-size // kernels.BLOCK),)](x, high, low, size, BLOCK=kernels.BLOCK)
    assert high[size:].isnan().all() and low[size:].isnan().all()
    return high[:size].numpy(), low[:size].numpy()


@pytest.mark.parametrize("size", [1, 7, kernels.BLOCK, kernels.BLOCK + 1, 5 * kernels.BLOCK - 3])
def test_every_bit_of_both_parts(size):
    x = random_floats(size)
    assert len(x) == size
    for found, wanted in zip(split_into(torch.from_numpy(x), size), expected(x), strict=True):
        np.testing.assert_array_equal(bits(found), bits(wanted))


def test_the_parts_are_tf32_and_add_up():
    """Each has 11 significant bits, and a sign bit: 2⁻²³ of x is left, or half of TF32's smallest subnormal number."""
    x = random_floats(4096, seed=1)
    high, low = split_into(torch.from_numpy(x), len(x))
    assert not (bits(high) & 0x1FFF).any() and not (bits(low) & 0x1FFF).any()
    left = np.abs(x.astype(np.float64) - high.astype(np.float64) - low.astype(np.float64))
    ordinary = np.abs(x) < nearest_tf32(np.float32([HUGE]))  # the last step below overflow is cut: 2⁻²² of it
    assert ordinary.sum() > 4000
    assert (left <= np.where(ordinary, 2.0**-23, 2.0**-22) * np.abs(x.astype(np.float64)) + 2.0**-137).all()


def test_special_numbers():
    finite = np.float32([0.0, -0.0, TINY, -TINY, 1e-40, 2.0**-126, 1.0, 1 + 2.0**-11, -(1 + 2.0**-11), HUGE, -HUGE])
    for found, wanted in zip(split_into(torch.from_numpy(finite), len(finite)), expected(finite), strict=True):
        np.testing.assert_array_equal(bits(found), bits(wanted))
    others = torch.tensor([float("inf"), float("-inf"), float("nan")])
    high, low = split_into(others, 3)
    np.testing.assert_array_equal(high[:2], [1.0, -1.0])
    np.testing.assert_array_equal(low, others.numpy())


def drawn(*shape, seed=0):
    """Standard normal numbers."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.fixture
def all_split(monkeypatch):
    """Splits matrices of every size; the kernel must have run."""
    monkeypatch.setattr(products, "SPLIT_SIDE", 0)
    monkeypatch.setattr(products, "SPLIT_WORK", 0)
    before = launch.launches["split_kernel"]
    yield
    assert launch.launches["split_kernel"] > before


def poisoned(batch, rows, cols):
    """Where the result goes: every entry that is not written stays NaN."""
    return torch.full((batch, rows, cols), float("nan"))


def assert_product(found, a, b):
    """Three sums of k exact products, in any order; what splitting drops of a product is another 2⁻²¹ of it.

    That is lo·lo, at most 2⁻²², and 2⁻²³ of each factor.
    """
    a, b = a.double().numpy(), b.double().numpy()
    error = np.abs(found.double().numpy() - a @ b)
    assert (error <= 1.01 * ((a.shape[2] + 3) * EPS + 2.0**-21) * (np.abs(a) @ np.abs(b))).all()


SIZES = [(1, 1, 1, 1), (2, 37, 19, 23), (1, 64, 32, 64), (2, 24, 200, 8), (3, 1, 40, 72), (2, 72, 40, 1)]


@pytest.mark.usefixtures("all_split")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("views", [(), ("a",), ("b",), ("a", "b", "out")], ids="_".join)
def test_product_of_every_shape_and_layout(sizes, views):
    batch, rows, inner, cols = sizes
    a = drawn(batch, inner, rows).mT if "a" in views else drawn(batch, rows, inner)
    b = drawn(batch, cols, inner, seed=1).mT if "b" in views else drawn(batch, inner, cols, seed=1)
    out = poisoned(batch, cols, rows).mT if "out" in views else poisoned(batch, rows, cols)
    assert matmul(a, b, out=out) is out
    assert_product(out, a, b)
    assert_product(matmul(a, b), a, b)


@pytest.mark.usefixtures("all_split")
def test_products_are_nearer_than_tf32s():
    """A negative control: the two small products matter."""
    a, b = drawn(1, 64, 64), drawn(1, 64, 64, seed=1)
    exact = a.double() @ b.double()
    (high, _), (other, _) = tiled.split(a), tiled.split(b)
    assert (high @ other - exact).norm() > 100 * (matmul(a, b) - exact).norm()


@pytest.mark.usefixtures("all_split")
def test_strided_and_expanded_factors():
    a, b = drawn(4, 80, 96)[::2, ::2, ::3], drawn(1, 64, 48)[:, ::2, 1:].expand(2, 32, 47)
    assert_product(matmul(a, b, out=poisoned(2, 40, 47)), a, b)


@pytest.mark.usefixtures("all_split")
@pytest.mark.parametrize(("most", "launches"), [(1, 10), (2 * 12 * 16 * 10, 6), (10**6, 2)])
def test_large_batches_are_split_in_parts(most, launches, monkeypatch):
    monkeypatch.setattr(products, "MOST_WORK", most)
    a, b = drawn(5, 12, 16), drawn(5, 16, 10, seed=1)
    before = launch.launches["split_kernel"]
    assert_product(matmul(a, b, out=poisoned(5, 12, 10)), a, b)
    assert launch.launches["split_kernel"] == before + launches


@pytest.mark.usefixtures("all_split")
def test_a_transposed_view_is_split_without_a_copy():
    x = drawn(2, 24, 40).mT
    for part in tiled.split(x):
        assert part.stride() == x.stride()
    matmul(x, x.mT)


@pytest.mark.usefixtures("all_split")
def test_infinities_and_nans_are_those_of_a_float32_product():
    a, b = drawn(1, 12, 16), drawn(1, 16, 10, seed=1)
    a[0, 2, 3], a[0, 5, 1], a[0, 7, 4] = float("inf"), float("nan"), float("-inf")
    b[0, 4, 6], b[0, 9, 8], b[0, 3, 2] = float("inf"), float("-inf"), 0.0
    a[0, 0, 9] = 1.0  # without a low part
    wanted = torch.bmm(a, b)
    assert wanted.isinf().any() and wanted.isnan().any()
    finite = wanted.isfinite()
    found = matmul(a, b)
    torch.testing.assert_close(torch.where(finite, 0.0, found), torch.where(finite, 0.0, wanted), equal_nan=True)
    torch.testing.assert_close(found[finite], wanted[finite], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("all_split")
def test_nothing_to_sum_and_nothing_to_do():
    assert (matmul(drawn(2, 5, 0), drawn(2, 0, 3), out=poisoned(2, 5, 3)) == 0).all()
    assert matmul(drawn(0, 5, 4), drawn(0, 4, 3)).shape == (0, 5, 3)
    assert matmul(drawn(2, 5, 4), drawn(2, 4, 0)).shape == (2, 5, 0)


def test_only_large_products_are_split(monkeypatch):
    split = []
    monkeypatch.setattr(tiled, "split", lambda x: split.append(x.shape) or (x, torch.zeros_like(x)))
    monkeypatch.setattr(products, "SPLIT_SIDE", 8)
    monkeypatch.setattr(products, "SPLIT_WORK", 4 * 8 * 8 * 16)
    for batch, rows, inner, cols in ((4, 8, 8, 16), (4, 16, 8, 8), (8, 8, 8, 8)):
        matmul(drawn(batch, rows, inner), drawn(batch, inner, cols))
    assert len(split) == 6
    for batch, rows, inner, cols in ((3, 8, 8, 16), (9, 7, 8, 16), (9, 8, 7, 16), (9, 8, 16, 7)):
        matmul(drawn(batch, rows, inner), drawn(batch, inner, cols))
    monkeypatch.setattr(products, "on_host", lambda device: True)
    matmul(drawn(4, 8, 8), drawn(4, 8, 16))
    assert len(split) == 6


@pytest.mark.parametrize(
    ("a", "b", "out", "message"),
    [
        (drawn(2, 3, 4), drawn(2, 5, 3), None, r"\(2, 3, 4\) by \(2, 5, 3\)"),
        (drawn(2, 3, 4), drawn(1, 4, 3), None, r"\(2, 3, 4\) by \(1, 4, 3\)"),
        (drawn(2, 3, 4), drawn(2, 4, 3), drawn(2, 3, 4), r"into \(2, 3, 4\)"),
        (drawn(2, 3, 4), drawn(2, 4, 3).double(), None, "must be torch.float32, or .*, got .*float64"),
    ],
)
def test_what_does_not_fit_is_named(a, b, out, message):
    with pytest.raises(ValueError, match=message):
        matmul(a, b, out=out)


@pytest.mark.parametrize("wanted", ["ieee", "tf32"])
@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_the_precision_of_float32_products_is_turned_and_turned_back(setting, wanted):
    switches = torch.backends.cuda.matmul
    try:
        torch.set_float32_matmul_precision(setting)
        before = switches.fp32_precision, switches.allow_tf32
        with pytest.raises(KeyError), float32_products(wanted):
            assert switches.fp32_precision in (("tf32",) if wanted == "tf32" else ("ieee", "none"))
            raise KeyError
        assert (switches.fp32_precision, switches.allow_tf32) == before
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_inherited_precision_stays_inherited():
    general, switches = torch.backends, torch.backends.cuda.matmul
    try:
        general.fp32_precision, switches.fp32_precision = "tf32", "none"
        with float32_products("ieee"):
            assert switches.fp32_precision == "ieee"
        assert switches.fp32_precision == "tf32"
        general.fp32_precision = "ieee"
        assert switches.fp32_precision == "ieee"
    finally:
        general.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
