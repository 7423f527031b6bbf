"""Stochastic rounding of bfloat16 parameters: the bits the reference prescribes, whatever the batching."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_cases import Case, tensor_of
from kernel_trials import all_bits, assert_same_bits, bits
from variants import ELEMENTWISE

import rlx_gpu
from rlx_gpu.parity.cases import normal, places
from rlx_gpu.reference.formats import stochastic_bfloat16
from rlx_gpu.trait import origin

LR, DECAY = 0.37, 0.11
CASES = (
    Case("long", (1100,)),
    Case("matrix", (9, 17), "transposed", "transposed"),
    Case("shifted", (140,), "unaligned"),
    Case("volume", (4, 3, 2), "permuted", "contiguous"),
)


def draw(cases=CASES, seed=3):
    """Parameters in bfloat16 and gradients in float32, by name."""
    rng = np.random.default_rng(seed)
    params = {c.name: tensor_of(normal(c, rng, "bfloat16"), "bfloat16", c.layout) for c in cases}
    grads = {c.name: tensor_of(normal(c, rng, "float32"), "float32", c.grad_layout) for c in cases}
    return params, grads


def sgd(**options):
    return rlx_gpu.SGD(LR, weight_decay=DECAY, rounding="stochastic", **options)


def step(optimizer, params, grads, names=None):
    optimizer.step_batch([(n, tuple(params[n].shape), params[n], grads[n]) for n in names or params])


def sgd_in_float32(param, grad):
    """The value that SGD's kernel rounds: the same float32 operations, each rounded to nearest."""
    param, grad = param.float().numpy(), grad.numpy()
    return param - np.float32(LR) * (grad + np.float32(DECAY) * param)


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**62 + 12345])
def test_bits_are_those_of_the_reference(seed):
    params, grads = draw()
    optimizer = sgd(seed=seed)
    for t in (1, 2):
        wanted = {}
        for name, param in params.items():
            index = origin(name) + places(param)
            wanted[name] = stochastic_bfloat16(sgd_in_float32(param, grads[name]), seed, t, index)
        step(optimizer, params, grads)
        optimizer.end_iteration()
        for name, param in params.items():
            np.testing.assert_array_equal(param.double().numpy(), wanted[name], err_msg=f"{name}, step {t}")


def test_bits_do_not_depend_on_the_batch():
    together, grads = draw()
    step(sgd(), together, grads)
    alone, _ = draw()
    for name in alone:
        step(sgd(), alone, grads, [name])
    backwards, _ = draw()
    step(sgd(), backwards, grads, list(backwards)[::-1])
    for name in together:
        np.testing.assert_array_equal(bits(together[name]), bits(alone[name]))
        np.testing.assert_array_equal(bits(together[name]), bits(backwards[name]))


def rounded_up(seed=0, name="p", steps=1):
    """Which of many equal elements the last step rounds away from their old value."""
    param = torch.ones(2048, dtype=torch.bfloat16)
    grad = torch.full((2048,), -(2.0**-9))  # a quarter of the spacing above 1
    optimizer = rlx_gpu.SGD(1.0, rounding="stochastic", seed=seed)
    for _ in range(steps):
        param.fill_(1.0)
        optimizer.step(name, (2048,), param, grad)
        optimizer.end_iteration()
    assert set(param.tolist()) == {1.0, 1.0 + 2.0**-7}
    return (param > 1).numpy()


def test_rounding_is_unbiased_and_draws_anew_for_every_seed_step_and_name():
    draws = [rounded_up(), rounded_up(seed=1), rounded_up(seed=2**32), rounded_up(name="q"), rounded_up(steps=2)]
    for i, one in enumerate(draws):
        assert abs(one.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / one.size)
        for other in draws[:i]:  # independent draws agree in 1 - 2 * 0.25 * 0.75 of the places
            assert abs((one == other).mean() - 0.625) < 0.06
    np.testing.assert_array_equal(draws[0], rounded_up())


def test_nan_and_infinity_stay():
    values = [float("nan"), float("inf"), float("-inf"), 0.0]
    params = {"p": torch.ones(4, dtype=torch.bfloat16)}
    step(sgd(), params, {"p": torch.tensor(values)})
    np.testing.assert_array_equal(params["p"][:3].float().numpy(), [np.nan, -np.inf, np.inf])
    assert params["p"][3].isfinite()


def test_what_bfloat16_holds_stays():
    params, grads = draw()
    before = {name: bits(param) for name, param in params.items()}
    optimizer = rlx_gpu.SGD(0.0, rounding="stochastic")
    step(optimizer, params, grads)
    for name, param in params.items():
        np.testing.assert_array_equal(bits(param), before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_other_formats_round_to_nearest(dtype):
    results = []
    for rounding in ("nearest", "stochastic"):
        param = torch.linspace(-2, 2, 200).to(dtype)
        optimizer = rlx_gpu.AdamW(LR, rounding=rounding)
        optimizer.step("p", (200,), param, torch.linspace(1, -2, 200).to(dtype))
        results.append(all_bits(optimizer, {"p": param}))
    assert_same_bits(*results)


@pytest.mark.parametrize("chosen", [v for v in ELEMENTWISE if not v.switches], ids=str)
def test_every_optimizer_rounds_the_parameter_and_not_its_state(chosen):
    """The stored parameter is a bfloat16 neighbour of the one that a float32 parameter would have become."""
    case = Case("p", (6, 40))
    results = {}
    for rounding, dtype in (("stochastic", "bfloat16"), ("nearest", "float32")):
        rng = np.random.default_rng(5)
        param = tensor_of(normal(case, rng, "bfloat16"), dtype)
        grad = tensor_of(normal(case, rng, "bfloat16"), "bfloat16")
        optimizer = chosen.make(rounding=rounding, lr=0.0)
        optimizer.step("p", case.shape, param, grad)  # moves nothing, but a first step may set state only
        optimizer.end_iteration()
        optimizer.set_lr(chosen.hyper["lr"])
        optimizer.step("p", case.shape, param, grad)
        results[rounding] = param.double().numpy(), optimizer.state_dict()
    (rounded, state), (exact, exact_state) = results["stochastic"], results["nearest"]
    spacing = 2.0 ** (np.frexp(exact)[1] - 8)
    assert np.all(np.abs(rounded - exact) < spacing)
    away = np.abs(rounded - exact) > spacing / 2  # round to nearest never goes there
    assert 0.1 < away.mean() < 0.4
    for key, value in exact_state.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(state[key], value), key
