"""Symmetric products on the interpreted kernel, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlx_gpu.engine import launch
from rlx_gpu.kernels.symmetric import symmetric_product_kernel
from rlx_gpu.kernels.tiles import tilings
from rlx_gpu.matrix import products, tiled
from rlx_gpu.matrix.products import symmetric_product

EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # of one rounding
SHAPES = [
    (1, 1, 1),
    (2, 1, 9),
    (3, 5, 1),
    (2, 37, 19),
    (1, 64, 64),
    (2, 24, 200),
    (1, 200, 24),
    (1, 136, 70),
    (3, 72, 8),
]


def drawn(shape, dtype=torch.float32, seed=0):
    """Standard normal numbers."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def symmetric(batch, size, dtype, seed=1):
    """A batch of symmetric matrices, symmetric after the rounding too."""
    values = drawn((batch, size, size), seed=seed)
    return (values + values.mT).to(dtype)


def poisoned(batch, size, dtype):
    """Where the result goes: every entry that is not written stays NaN."""
    return torch.full((batch, size, size), float("nan"), dtype=dtype)


def assert_product(found, x, alpha=1.0, beta=0.0, c=None, y=None):
    """Within the rounding of float32 sums of k terms in any order, and of the result's format; symmetric to the bit."""
    left, right = x.double().numpy(), (x if y is None else y).mT.double().numpy()
    term = np.zeros(found.shape) if c is None else beta * c.double().numpy()
    wanted = alpha * left @ right + term
    size = abs(alpha) * np.abs(left) @ np.abs(right) + np.abs(term)
    # A sum of k products and the three operations after it; then one rounding of the result.
    allowed = (x.shape[2] + 3) * EPS[torch.float32] * size + EPS[found.dtype] * np.abs(wanted)
    assert (np.abs(found.double().numpy() - wanted) <= 1.01 * allowed).all()
    assert torch.equal(found, found.mT)


@pytest.fixture(autouse=True)
def one_launch():
    """The kernel multiplies, not torch."""
    before = launch.launches["symmetric_product_kernel"]
    yield
    assert launch.launches["symmetric_product_kernel"] > before


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product_of_every_shape_and_format(shape, dtype):
    x = drawn(shape, dtype)
    assert_product(symmetric_product(x, out=poisoned(*shape[:2], dtype)), x)


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (-0.5, 2.5), (0.0, 1.0), (3.0, 0.0)])
def test_scaled_product_and_term(alpha, beta, dtype):
    x, c = drawn((2, 40, 24), dtype), symmetric(2, 40, dtype)
    kept = c.clone()
    assert_product(symmetric_product(x, out=poisoned(2, 40, dtype), alpha=alpha, beta=beta, c=c), x, alpha, beta, c)
    assert torch.equal(c, kept)


@pytest.mark.parametrize("size", [40, 72, 150, 33])
def test_the_term_may_be_the_result(size):
    x, c = drawn((2, size, 16)), symmetric(2, size, torch.float32)
    out = c.clone()
    assert symmetric_product(x, out=out, alpha=0.5, beta=-1.5, c=out) is out
    assert_product(out, x, 0.5, -1.5, c)


def test_only_the_lower_triangle_of_the_term_is_read():
    x, c = drawn((1, 72, 16)), symmetric(1, 72, torch.float32)
    lower = torch.where(torch.ones(72, 72).tril() > 0, c, float("nan"))
    assert_product(symmetric_product(x, beta=1.0, c=lower), x, 1.0, 1.0, c)


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("size", [40, 72, 150, 33])
def test_product_of_two_factors(size, dtype):
    """X = ZD and Y = Z, D diagonal and positive: XYᵀ is symmetric, X and Y are not alike in any entry."""
    y = drawn((2, size, 24), dtype)
    x, c = y * torch.tensor([0.5, 2.0, 4.0], dtype=dtype).repeat(8), symmetric(2, size, dtype)
    for given in ((x, y), (x.mT.contiguous().mT, y.mT.contiguous().mT)):
        out = symmetric_product(*given, out=poisoned(2, size, dtype), alpha=0.5, beta=-1.5, c=c)
        assert_product(out, x, 0.5, -1.5, c, y)


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_product_of_polynomials_in_one_matrix(transposed, dtype):
    """Circulant matrices of small integers commute to the last bit; the term is a factor."""
    first, second = (torch.stack([row.roll(i, 1) for i in range(40)], 1) for row in drawn((2, 2, 40), seed=3).round())
    x, y = ((one + one.mT).to(dtype) for one in (first, second))
    x, y = (x.mT, y.mT) if transposed else (x, y)
    assert_product(symmetric_product(x, y, out=poisoned(2, 40, dtype), alpha=2.0, beta=3.0, c=x), x, 2.0, 3.0, x, y)


VIEWS = {
    "transposed": lambda base: base[:, :24, :40].contiguous().mT,
    "rows_apart": lambda base: base[:, :40, :24],
    "every_other": lambda base: base[:, ::2, ::3],
    "every_other_matrix": lambda base: base[::2, :40, :24],
    "expanded": lambda base: base[:1, :40, :24].expand(3, 40, 24),
    "unaligned": lambda base: base.flatten()[1 : 1 + 3 * 40 * 24].view(3, 40, 24),
    "batch_inside": lambda base: base[:, :40, :24].contiguous().permute(1, 2, 0).contiguous().permute(2, 0, 1),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_views(view, dtype):
    x = VIEWS[view](drawn((4, 80, 96), dtype))
    assert_product(symmetric_product(x, out=poisoned(*x.shape[:2], dtype)), x)


def test_transposed_result_and_term():
    x, c = drawn((2, 40, 24)), symmetric(2, 40, torch.float32)
    out = poisoned(2, 40, torch.float32).mT
    assert_product(symmetric_product(x, out=out, beta=2.0, c=c.mT), x, 1.0, 2.0, c)


def test_a_result_inside_a_larger_tensor_leaves_the_rest():
    x, whole = drawn((2, 40, 24)), torch.full((2, 48, 56), 7.0)
    assert_product(symmetric_product(x, out=whole[:, :40, :40]), x)
    assert (whole[:, 40:] == 7).all() and (whole[:, :, 40:] == 7).all()


@pytest.mark.parametrize("size", [128, 256])
def test_large_tiles_in_the_order_of_groups(size, monkeypatch):
    monkeypatch.setattr(tiled, "tilings", lambda *format: tilings(*format)._replace(many=0))
    for shape, transposed in (((2, size, 64), False), ((1, size * 5 + 8, 32), True)):
        base = drawn((shape[0], shape[2], shape[1]) if transposed else shape)
        x = base.mT if transposed else base
        assert_product(symmetric_product(x, out=poisoned(*shape[:2], torch.float32)), x)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, "cols"), (torch.bfloat16, "rows")], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_factor_that_is_the_term_is_read_as_is_faster(dtype, unit, transposed, monkeypatch):
    """The square of a symmetric matrix; the kernel may read the matrix or its transpose, and copies neither."""
    a = symmetric(2, 40, dtype)
    a = a.mT if transposed else a
    read = []
    original = launch.launch
    monkeypatch.setattr(
        launch, "launch", lambda *given, **named: read.append((given, named)) or original(*given, **named)
    )
    assert_product(symmetric_product(a, out=poisoned(2, 40, dtype), alpha=0.5, beta=2.0, c=a), a, 0.5, 2.0, a)
    ((given, named),) = read
    assert named["UNIT"] == unit and given[2].data_ptr() == a.data_ptr()


def test_float32_is_copied_into_the_layout_of_tensor_cores(monkeypatch):
    """Unless its sizes allow no vector loads even then."""
    units = []
    original = launch.launch
    monkeypatch.setattr(
        launch, "launch", lambda *given, **named: units.append(named["UNIT"]) or original(*given, **named)
    )
    for view in (drawn((2, 24, 40)).mT, drawn((2, 80, 48))[:, ::2, ::2], drawn((2, 24, 36)).mT, drawn((2, 20, 40)).mT):
        assert_product(symmetric_product(view), view)
    assert units == ["cols", "cols", "none", "none"]


# dtype, layout, rows, tiles of the batch, with C; beside what was measured on an H200 (see `products.faster`)
FASTER = {
    "float32": ((torch.float32, "cols", 256, 3, False), True),
    "float32, small": ((torch.float32, "cols", 248, 300, False), False),
    "float32, odd": ((torch.float32, "none", 4096, 528, True), False),
    "rows of 2048": ((torch.bfloat16, "rows", 2048, 136, False), True),
    "rows of 1024": ((torch.bfloat16, "rows", 1024, 36, False), False),
    "rows of 16 times 1024": ((torch.float16, "rows", 1024, 576, False), True),
    "cols of 2048": ((torch.bfloat16, "cols", 2048, 544, False), False),
    "cols of 4096": ((torch.float16, "cols", 4096, 528, False), True),
    "with C": ((torch.bfloat16, "rows", 512, 10, True), True),
    "with C, small": ((torch.bfloat16, "rows", 504, 10, True), False),
    "odd with C": ((torch.bfloat16, "none", 4096, 528, True), False),
}


@pytest.mark.parametrize("case", FASTER)
def test_where_the_kernel_multiplies(case):
    symmetric_product(drawn((1, 4, 4)))
    given, kernel = FASTER[case]
    assert products.faster(*given) is kernel


@pytest.mark.parametrize("group", [1, 3, 8])
def test_every_tile_of_the_triangle_is_visited(group):
    """17 rows of tiles are no multiple of a group; the poison shows what was left out."""
    x = drawn((2, 16 * 17, 16))
    out = poisoned(2, 16 * 17, torch.float32)
    strides = (*x.stride(), *out.stride()[:2], *out.stride()[:2])
    constants = {"HAS_C": False, "UNIT": "cols", "WHOLE": True, "BLOCK": 16, "DEPTH": 16, "GROUP": group}
    symmetric_product_kernel[(2 * 17 * 18 // 2,)](x, x, out, out, 272, 16, 17, *strides, 1.0, 0.0, **constants)
    launch.launches["symmetric_product_kernel"] += 1
    assert_product(out, x)


def test_offsets_beyond_32_bits():
    """The second matrix lies 2³¹ elements behind the first; the pages between are never touched, and take no memory."""
    far = 2**31 + 8
    x = torch.empty(far + 40 * 24, dtype=torch.bfloat16).as_strided((2, 40, 24), (far, 24, 1))
    x.copy_(drawn((2, 40, 24)))
    assert_product(symmetric_product(x, out=poisoned(2, 40, torch.bfloat16)), x)


def test_nothing_to_sum_and_nothing_to_do():
    c = symmetric(2, 40, torch.float32)
    assert_product(symmetric_product(drawn((2, 40, 0)), beta=1.0, c=c), drawn((2, 40, 0)), 1.0, 1.0, c)
    assert symmetric_product(drawn((0, 40, 24))).shape == (0, 40, 40)
    assert symmetric_product(drawn((3, 0, 24))).shape == (3, 0, 0)


def test_nan_stays_in_its_row_and_column():
    x = drawn((1, 40, 24))
    x[0, 3, 5] = float("nan")
    bad = symmetric_product(x).isnan()
    assert bad[0, 3].all() and bad[0, :, 3].all() and bad.sum() == 2 * 40 - 1


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (drawn((2, 4, 8)), {"out": torch.empty(2, 4, 8)}, r"out: .* \(2, 4, 8\), must be torch.float32 \(2, 4, 4\)"),
        (drawn((2, 4, 8)), {"c": torch.empty(2, 4, 4).half()}, r"c: torch.float16 \(2, 4, 4\), must be torch.float32"),
        (drawn((2, 4, 8)), {"out": torch.empty(2, 8, 8)[:, ::2, ::2]}, "out: rows or columns must be contiguous"),
        (drawn((2, 4, 8)), {"y": torch.empty(2, 4, 4)}, r"y: .* \(2, 4, 4\) .*, must be torch.float32 \(2, 4, 8\)"),
        (drawn((2, 8, 8)), {"y": torch.empty(2, 8, 8).mT}, r"y: .* strides \(64, 1, 8\), must be .* \(64, 8, 1\) as x"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(x, options, message):
    symmetric_product(x)
    with pytest.raises(ValueError, match=message):
        symmetric_product(x, **options)


def test_the_result_must_not_lie_on_a_factor():
    x, y = symmetric(1, 8, torch.float32), torch.eye(8)[None]
    symmetric_product(x)
    for given, out in (((x,), x), ((x, y), x), ((x, y), y)):
        with pytest.raises(ValueError, match="in the place of x or y"):
            symmetric_product(*given, out=out)


@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_torch_gives_the_same_without_kernels(dtype, monkeypatch):
    x, c = drawn((2, 40, 24), dtype), symmetric(2, 40, dtype)
    tiled = symmetric_product(x, alpha=0.5, beta=2.0, c=c)
    monkeypatch.setattr(products, "on_host", lambda device: True)
    plain = symmetric_product(x, alpha=0.5, beta=2.0, c=c)
    # Both are within one rounding of the same sum, and bfloat16 on the CPU rounds the product and the term apart.
    torch.testing.assert_close(plain, tiled, rtol=8 * EPS[dtype], atol=64 * EPS[dtype])


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
def test_tiles_fit_the_smallest_shared_memory(size, capability):
    """100 KiB a block on sm_86 and sm_89 less what the runtime keeps: 99 KiB for the stages of both operands."""
    symmetric_product(drawn((1, 4, 4)))
    for tiling in tilings(size, capability)[:3]:
        assert tiling.stages * 2 * tiling.block * tiling.depth * size <= 99 * 1024
