"""Newton–Schulz on the device against the reference in float64: shapes, formats, forms, extremes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spectra import STEADY, expected, relative, step_by_step, with_singular_values

from rlx_gpu.engine.devices import stepped_on_host
from rlx_gpu.matrix import newton_schulz as module
from rlx_gpu.matrix import products
from rlx_gpu.matrix.newton_schulz import newton_schulz, normalized, oriented, orthogonalize_
from rlx_gpu.reference.newton_schulz import COEFFICIENTS, schedule

CPU = torch.device("cpu")
SHAPES = ((1, 1), (1, 9), (9, 1), (16, 16), (17, 33), (33, 17), (8, 200), (130, 7), (3, 12, 40), (2, 2, 20, 5))
ULPS = 4 * 2.0**-24  # normalising rounds four times: x over its peak, the norm, eps, the quotient


def iterated(x, coefficients):
    """The reference's iteration on a matrix that is not normalised."""
    result = step_by_step(x.mT if x.shape[-2] > x.shape[-1] else x, schedule(coefficients, 5))
    return result if result.shape == x.shape else result.mT


@pytest.fixture(params=["plain", "symmetric", "gram"])
def each_form(request, monkeypatch):
    """Iterates in one form whatever the table says; the test must have iterated."""
    used = []
    iterate = module.FORMS[request.param]
    monkeypatch.setitem(module.FORMS, request.param, lambda *args: used.append(request.param) or iterate(*args))
    monkeypatch.setattr(module, "form", lambda *_: request.param)
    yield request.param
    assert used


@pytest.mark.parametrize("coefficients", [*COEFFICIENTS, [(3.4445, -4.7750, 2.0315), (1.875, -1.25, 0.375)]], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_the_reference(shape, coefficients):
    """Where the polynomials themselves magnify float32's rounding ("cans" at 1), within what they make of it."""
    x = torch.randn(shape)
    given, wanted = x.clone(), expected(x, 5, coefficients)
    result = newton_schulz(x, 5, coefficients)
    assert (result.dtype, result.shape) == (x.dtype, x.shape)
    unit = x.double() / x.double().norm(dim=(-2, -1), keepdim=True)
    rounded = (unit * (1 - ULPS), unit * (1 + ULPS), unit.float())
    own = max(float((iterated(start, coefficients) - wanted).abs().max()) for start in rounded)
    bound = max(1e-5, 4.0 * own)
    torch.testing.assert_close(result.double(), wanted, rtol=1e-5, atol=bound)
    assert torch.equal(x, given)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_every_number_of_steps_in_every_form(steps, each_form):
    """Every step multiplies the rounding of what has not yet grown by up to a ≈ 4; singular values here are alike."""
    x = torch.randn(2, 8, 64)
    torch.testing.assert_close(newton_schulz(x, steps).double(), expected(x, steps), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "values",
    [
        [1.0] * 6 + [0.0] * 6,
        [0.0] * 12,
        [1e4] + [1.0] * 11,
        [1.0] * 11 + [1e-9],
    ],
    ids=["rank_deficient", "zero", "one_huge", "one_tiny"],
)
@pytest.mark.parametrize("tall", [False, True], ids=["wide", "tall"])
def test_spectra(values, tall, each_form):
    """A singular value of 1e-4 of the norm is multiplied by 3.4 in each step; the Gram form sees its square, 1e-8."""
    x = with_singular_values(values, 40)
    x = x.mT.contiguous() if tall else x
    bound = 1e-4 if each_form == "gram" else 1e-5
    torch.testing.assert_close(newton_schulz(x).double(), expected(x), rtol=bound, atol=bound)


@pytest.mark.parametrize(("dtype", "coefficients"), STEADY, ids=str)
@pytest.mark.parametrize("shape", [(24, 24), (40, 17), (3, 12, 80)], ids=str)
def test_half_precision_is_as_exact_as_the_plain_iteration(shape, dtype, coefficients):
    """Sums in float32 before one rounding: never worse than rounding every operation, by more than chance."""
    x = torch.randn(shape)
    wide = x.mT if shape[-2] > shape[-1] else x
    unit = (wide / wide.norm(dim=(-2, -1), keepdim=True)).to(dtype)
    plain = relative(step_by_step(unit, schedule(coefficients, 5)), expected(wide, 5, coefficients))
    assert relative(newton_schulz(x, 5, coefficients, dtype=dtype), expected(x, 5, coefficients)) <= 1.25 * plain


@pytest.mark.parametrize(("dtype", "coefficients"), STEADY, ids=str)
def test_forms_agree_in_half_precision(dtype, coefficients, each_form):
    """The Gram form rounds Q on its diagonal, a ≈ 4 times what the plain form rounds, and is kept from "cans"."""
    if each_form == "gram" and not module.tolerant(schedule(coefficients, 5), torch.finfo(dtype).eps / 2):
        assert coefficients == "cans"
        coefficients = "quintic"
    x = torch.randn(2, 32, 200)
    unit = normalized(x, 1e-7, dtype)
    plain = relative(step_by_step(unit, schedule(coefficients, 5)), expected(x, 5, coefficients))
    found = relative(newton_schulz(x, 5, coefficients, dtype=dtype), expected(x, 5, coefficients))
    assert found <= (4.0 if each_form == "gram" else 1.25) * plain


@pytest.mark.parametrize(("dtype", "contiguous"), [(torch.float32, -1), (torch.bfloat16, -2), (torch.float16, -2)])
def test_matrices_are_iterated_as_products_read_them_faster(dtype, contiguous):
    for base in (torch.empty(3, 8, 8, dtype=dtype), torch.empty(3, 8, 8, dtype=dtype).mT):
        found = oriented(base)
        assert found.stride(contiguous) == 1 and found.data_ptr() == base.data_ptr()
    assert oriented(torch.empty(9, 4, dtype=dtype)).shape == oriented(torch.empty(4, 9, dtype=dtype)).shape == (4, 9)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-7, 1e30, 1e37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_scale_overflows_or_vanishes(scale, dtype):
    """A matrix far below eps keeps its direction and its size over eps, as in the reference."""
    x = torch.randn(6, 10) * scale
    wanted = expected(x)
    bound = 1e-5 if dtype == torch.float32 else 0.05  # 2⁻⁸ over five steps
    assert relative(newton_schulz(x, dtype=dtype), wanted) < bound
    assert scale < 1e-7 or 0.5 < wanted.norm() / 6**0.5 < 1.3


def test_half_precision_input_is_normalised_in_float32():
    """float16 holds 6e4: neither the squares nor the norm would fit."""
    x = (torch.randn(6, 10) * 2e4).half()
    found = newton_schulz(x)
    assert found.dtype == torch.float16
    assert relative(found, expected(x)) < 1e-2
    assert newton_schulz(x, dtype=torch.float32).dtype == torch.float16
    assert relative(newton_schulz(x, dtype=torch.float32), expected(x)) < 1e-3  # rounded once, at the end


def test_views_and_empty_matrices():
    base = torch.randn(3, 30, 22)
    for view in (base.mT, base[:, ::2, 1:], base[1], base.expand(2, 3, 30, 22)):
        torch.testing.assert_close(newton_schulz(view).double(), expected(view), rtol=1e-5, atol=1e-5)
    for shape in ((0, 4), (4, 0), (0, 3, 5)):
        assert newton_schulz(torch.empty(shape)).shape == shape


def test_no_gradient_is_recorded():
    assert not newton_schulz(torch.randn(3, 4, requires_grad=True)).requires_grad


def test_not_a_number_spreads_over_its_own_matrix_only():
    x = torch.randn(3, 4, 6)
    x[1, 2, 3] = float("nan")
    found = newton_schulz(x)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("steps", [4, 5])
def test_large_batches_in_chunks(steps, each_form, monkeypatch):
    """Chunks give what the whole batch gives, transposed or not, and where x lies."""
    x = normalized(torch.randn(7, 6, 30), 1e-7, torch.float32)
    triples = schedule("quintic", steps)
    whole = orthogonalize_(x.clone(), triples)
    monkeypatch.setattr(module, "MOST_ELEMENTS", 3 * 6 * 30)
    for matrices in (x.clone(), x.mT.contiguous().mT):
        result = orthogonalize_(matrices, triples)
        assert result.data_ptr() == matrices.data_ptr()
        torch.testing.assert_close(result, whole, rtol=1e-6, atol=1e-6)


def test_strided_batches_leave_what_lies_between_alone(each_form):
    """Matrices of a workspace, each padded to a multiple of eight elements."""
    memory = torch.full((3, 6 * 31 + 6), 7.0)
    x = memory[:, : 6 * 31].view(3, 6, 31)
    x.copy_(normalized(torch.randn(3, 6, 31), 1e-7, torch.float32))
    wanted = orthogonalize_(x.clone(), schedule("keller", 5))
    torch.testing.assert_close(orthogonalize_(x, schedule("keller", 5)), wanted, rtol=1e-6, atol=1e-6)
    assert (memory[:, 6 * 31 :] == 7.0).all()


def test_memory_beyond_the_result(each_form):
    """One more m × n and two m × m."""
    x = normalized(torch.randn(4, 16, 128), 1e-7, torch.float32)
    triples = schedule("keller", 4)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        orthogonalize_(x, triples)
    taken = [
        event.cpu_memory_usage for event in profile.events() if event.name == "aten::empty" or "new_empty" in event.name
    ]
    assert sum(max(0, size) for size in taken) <= 4 * 4 * (16 * 128 + 2 * 16 * 16) + 1024


def test_the_table_decides(monkeypatch):
    monkeypatch.setattr(module, "on_host", lambda device: False)
    keller, cans = schedule("keller", 5), schedule("cans", 5)
    choose = lambda m, n, batch=1, dtype=torch.bfloat16, triples=keller: module.form(  # noqa: E731
        m, n, batch, dtype, CPU, triples
    )
    for dtype, side in module.LEAST_ROWS.items():
        assert choose(side, side, 64, dtype) == "symmetric"
        assert choose(side - 1, side, 64, dtype) == "plain"
    assert choose(512, 1024, 4) == "gram"
    assert choose(512, 1023, 4) == choose(512, 1024, 3) == choose(512, 1024, 4, triples=cans) == "plain"
    assert choose(512, 1024, 4, torch.float32) == choose(2048, 8192, triples=cans) == "symmetric"
    monkeypatch.setattr(module, "on_host", lambda device: True)
    assert choose(4096, 4096 * 8) == "plain"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": np.ones((2, 2))}, TypeError, "torch.Tensor, got ndarray"),
        ({"x": torch.ones(2, 2, dtype=torch.float64)}, TypeError, "float64"),
        ({"x": torch.ones(2, 2, dtype=torch.int32)}, TypeError, "int32"),
        ({"x": torch.ones(2, 2).to_sparse()}, TypeError, "sparse"),
        ({"x": torch.ones(3)}, ValueError, "(3,)"),
        ({"dtype": torch.float64}, TypeError, "dtype is torch.float64"),
        ({"steps": 0}, ValueError, "steps"),
        ({"coefficients": "none"}, ValueError, "coefficients"),
        ({"coefficients": []}, ValueError, "coefficients"),
        ({"eps": 0.0}, ValueError, "eps"),
    ],
    ids=str,
)
def test_refusals_name_what_is_wrong(arguments, error, words):
    with pytest.raises(error) as raised:
        newton_schulz(**{"x": torch.ones(2, 2), **arguments})
    assert words in str(raised.value)


@pytest.mark.parametrize("fast", [True, False], ids=["multiplied", "widened"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 24, 40), (2, 40, 24), (3, 32, 32)])
def test_16_bits_on_the_cpu_are_multiplied_by_the_processor_or_in_float32(shape, dtype, fast, monkeypatch):
    """Some processors multiply neither format, and torch then takes a thousand times as long."""
    monkeypatch.setitem(products.HALVES, dtype, lambda: fast)
    x = torch.randn(shape)
    with stepped_on_host():
        exact, found = newton_schulz(x, dtype=torch.float32), newton_schulz(x, dtype=dtype)
    assert (found - exact).norm() / exact.norm() < 0.05
