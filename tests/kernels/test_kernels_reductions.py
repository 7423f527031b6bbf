"""Norms, clipping and gradient scaling on the device."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kernel_cases import ALL_CASES, Case, fitting, tensor_of
from kernel_trials import all_bits, assert_same_bits, bits, recorded_launches
from numpy.testing import assert_array_equal
from variants import ELEMENTWISE, named

import rlx_gpu
from rlx_gpu import reference
from rlx_gpu.engine import sums as engine_sums
from rlx_gpu.engine.norms import squared_norm
from rlx_gpu.kernels.reductions import MOST_ROWS
from rlx_gpu.parity.cases import normal

DTYPES = ("float32", "bfloat16", "float16")
# Squares and sums of a block in float32, the blocks' sums in float64, rounded once, and a root.
NORM_TOLERANCE = 5e-7


def array(shape=(1500,), dtype="float32", layout="contiguous", seed=1):
    """Values in float64 and the tensor that holds them."""
    values = fitting(normal(Case("x", shape), np.random.default_rng(seed), dtype), layout)
    return values, tensor_of(values, dtype, layout)


def assert_close(found, wanted):
    assert abs(float(found) - wanted) <= NORM_TOLERANCE * wanted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_l2_norm(case, dtype):
    values, x = array(case.shape, dtype, case.grad_layout)
    norm = rlx_gpu.l2_norm(x)
    assert norm.shape == () and norm.dtype == torch.float32
    assert_close(norm, np.linalg.norm(values))
    assert_array_equal(bits(norm), bits(rlx_gpu.l2_norm(x)))


def test_l2_norm_leaves_out_what_is_not_finite():
    values, x = array()
    for place, bad in ((0, np.nan), (700, np.inf), (1499, -np.inf)):
        x[place] = bad
        values[place] = 0.0
    assert_close(rlx_gpu.l2_norm(x), np.linalg.norm(values))
    assert rlx_gpu.l2_norm(torch.full((3,), float("nan"))) == 0


def test_squared_norm_counts_what_is_not_finite():
    tensors = [
        torch.tensor([1.0, np.nan, 2.0]),
        torch.tensor([[np.inf], [-np.inf]]),
        torch.ones(2, dtype=torch.float16),
    ]
    assert squared_norm(tensors, torch.device("cpu")).tolist() == [7.0, 3.0]


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 40.0, 1e9, float("inf")])
def test_global_grad_clip_scale(max_norm):
    drawn = [array(shape, dtype, seed=9) for shape in ((130,), (3, 400)) for dtype in DTYPES]
    with recorded_launches() as made:
        scale = rlx_gpu.global_grad_clip_scale([None, *(tensor for _, tensor in drawn)], max_norm)
    assert len(made) == 3 * len(DTYPES)
    wanted = reference.global_grad_clip_scale([values for values, _ in drawn], max_norm)
    assert scale.dtype == torch.float32 and scale.shape == ()
    assert_close(scale, wanted)


def test_the_order_of_summation_is_fixed():
    tensors = [array((n,), seed=n)[1] for n in (5000, 1, 1024, 300)]
    norms = [bits(rlx_gpu.global_grad_clip_scale(tensors, 1.0)) for _ in range(3)]
    assert_array_equal(norms[0], norms[1])
    assert_array_equal(norms[0], norms[2])


def test_finish_sums_adds_its_range_in_float64():
    partials = torch.from_numpy(np.random.default_rng(2).normal(size=(2500, 2)).astype(np.float32) * 1e4)
    ranges = np.array([[0, 0], [0, 1], [3, 1500], [2499, 2500], [2500, 2500], [0, 2500], [7, 7]])
    sums = torch.full((len(ranges), 2), float("nan"))
    with recorded_launches() as made:
        engine_sums.SumLaunch(partials, ranges, sums).run()
    assert [name for name, _ in made] == ["finish_sums_kernel"]
    wanted = [partials[first:last].double().sum(dim=0).float().tolist() for first, last in ranges]
    np.testing.assert_allclose(sums.numpy(), wanted, rtol=2.0**-23, atol=0)


@pytest.mark.parametrize("rows", [MOST_ROWS - 1, MOST_ROWS, MOST_ROWS + 1, 5 * MOST_ROWS + 7])
def test_very_many_sums_are_added_in_two_levels(rows, path):
    """Where one tensor has more than a program adds up; each level in order, in float64."""
    numbers = np.random.default_rng(3).normal(size=(rows + 20, 2)) * 1e4
    dtype = torch.float64 if path == "host" else torch.float32
    partials = torch.from_numpy(numbers).to(dtype)
    ranges = np.array([[0, 7], [7, 7], [7, 7 + rows], [7 + rows, 20 + rows]])
    found = []
    for _ in range(2):
        sums = torch.full((len(ranges), 2), float("nan"), dtype=dtype)
        launch = engine_sums.SumLaunch(partials, ranges, sums)
        launch.run()
        found.append(sums)
    wanted = [[math.fsum(partials[first:last, i].tolist()) for i in range(2)] for first, last in ranges]
    size = partials.abs().sum().item()
    np.testing.assert_allclose(found[0].double().numpy(), wanted, rtol=2.0**-23, atol=1e-15 * size)
    assert torch.equal(*found)
    assert len(launch.launches) == (2 if rows > MOST_ROWS else 1)


def step(chosen, factor, **options):
    """The bits after two steps with gradients multiplied by a factor beforehand."""
    optimizer = chosen.make()
    params = {"p": array((4, 37))[1], "q": array((130,), seed=2)[1]}
    for t in (1, 2):
        grads = {name: array(tuple(p.shape), seed=10 * t + len(name))[1] * factor for name, p in params.items()}
        items = [(name, tuple(p.shape), p, grads[name]) for name, p in params.items()]
        optimizer.step_batch(items, **options)
        optimizer.end_iteration()
    return all_bits(optimizer, params)


@pytest.mark.parametrize("chosen", ELEMENTWISE, ids=str)
def test_grad_scale_is_a_factor_on_every_gradient(chosen):
    wanted = step(chosen, np.float32(0.3))
    assert_same_bits(step(chosen, 1.0, grad_scale=0.3), wanted)
    assert_same_bits(step(chosen, 1.0, grad_scale=torch.tensor(0.3)), wanted)


def test_grad_scale_lasts_for_one_step():
    plain, scaled = (named("SGD").make() for _ in range(2))
    one, other = torch.ones(3), torch.ones(3)
    for t, scale in enumerate((0.25, 1.0, torch.tensor([0.5]), 1.0, 2.0)):
        grad = torch.full((3,), 1.0 + t)
        plain.step("p", (3,), one, grad * scale)
        scaled.step(
            "p", (3,), other, grad, **({} if isinstance(scale, float) and scale == 1.0 else {"grad_scale": scale})
        )
        plain.end_iteration()
        scaled.end_iteration()
        assert_array_equal(bits(one), bits(other))
