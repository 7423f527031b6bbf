"""Float32 products on the interpreted kernel, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlx_gpu import launch
from rlx_gpu.matrix import products
from rlx_gpu.matrix.products import ROUTES, matmul

EPS = 2.0**-24
SIZES = [
    (1, 1, 1, 1),
    (2, 37, 19, 23),
    (1, 64, 32, 64),
    (2, 24, 200, 8),
    (1, 200, 8, 136),
    (3, 1, 40, 72),
    (2, 72, 40, 1),
]


def drawn(*shape, seed=0):
    """Standard normal numbers."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def poisoned(batch, rows, cols):
    """Where the result goes: every entry that is not written stays NaN."""
    return torch.full((batch, rows, cols), float("nan"))


def assert_product(found, a, b):
    """Within the rounding of float32 sums of k products, in any order."""
    a, b = a.double().numpy(), b.double().numpy()
    error = np.abs(found.double().numpy() - a @ b)
    assert (error <= 1.01 * (a.shape[2] + 1) * EPS * (np.abs(a) @ np.abs(b))).all()


@pytest.fixture(autouse=True)
def one_launch():
    """The kernel multiplies, not torch."""
    before = launch.launches["matmul_kernel"]
    yield
    assert launch.launches["matmul_kernel"] > before


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("views", ["", "a", "b", "ab", "out", "about"])
def test_product_of_every_shape_and_layout(sizes, views):
    batch, rows, inner, cols = sizes
    a = drawn(batch, inner, rows).mT if "a" in views.replace("out", "") else drawn(batch, rows, inner)
    b = drawn(batch, cols, inner, seed=1).mT if "b" in views else drawn(batch, inner, cols, seed=1)
    out = poisoned(batch, cols, rows).mT if "out" in views else poisoned(batch, rows, cols)
    assert matmul(a, b, out=out) is out
    assert_product(out, a, b)
    assert_product(matmul(a, b), a, b)


def test_strided_and_expanded_factors():
    a, b = drawn(4, 80, 96)[::2, ::2, ::3], drawn(1, 64, 48)[:, ::2, 1:].expand(2, 32, 47)
    assert_product(matmul(a, b, out=poisoned(2, 40, 47)), a, b)


@pytest.mark.parametrize("shape", [(128, 64, 256), (1200, 32, 264)])
def test_large_tiles_in_the_order_of_groups(shape, monkeypatch):
    monkeypatch.setitem(ROUTES, ("matmul", torch.float32), products.Route(kernel=0, large=0))
    rows, inner, cols = shape
    a, b = drawn(2, rows, inner), drawn(2, inner, cols, seed=1)
    assert_product(matmul(a, b, out=poisoned(2, rows, cols)), a, b)


def test_nothing_to_sum_and_nothing_to_do():
    assert (matmul(drawn(2, 5, 0), drawn(2, 0, 3), out=poisoned(2, 5, 3)) == 0).all()
    assert matmul(drawn(0, 5, 4), drawn(0, 4, 3)).shape == (0, 5, 3)
    assert matmul(drawn(2, 5, 4), drawn(2, 4, 0)).shape == (2, 5, 0)


@pytest.mark.parametrize(
    ("a", "b", "out", "message"),
    [
        (drawn(2, 3, 4), drawn(2, 5, 3), None, r"\(2, 3, 4\) by \(2, 5, 3\)"),
        (drawn(2, 3, 4), drawn(1, 4, 3), None, r"\(2, 3, 4\) by \(1, 4, 3\)"),
        (drawn(2, 3, 4), drawn(2, 4, 3), drawn(2, 3, 4), r"into \(2, 3, 4\)"),
        (drawn(2, 3, 4), drawn(2, 4, 3).double(), None, "must be torch.float32, got .*float64"),
        (drawn(2, 3, 4), drawn(2, 4, 3), drawn(2, 6, 6)[:, ::2, ::2], "rows or columns must be contiguous"),
    ],
)
def test_what_does_not_fit_is_named(a, b, out, message):
    matmul(a, a.mT)
    with pytest.raises(ValueError, match=message):
        matmul(a, b, out=out)
