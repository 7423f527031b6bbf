"""float64 parameters on the CPU: the same rules, with float64 literals and rows, against the float64 reference."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

import rlx_gpu
from rlx_gpu import reference
from rlx_gpu.engine.devices import stepped_on_host
from rlx_gpu.parity.cases import gradient, normal, parse_shapes
from rlx_gpu.parity.variants import find_algorithms, variants

CASES = parse_shapes("scalar,1,127,1025,20x6,65x128,3x5x7,0x3")
VARIANTS = list(chain.from_iterable(variants(algorithm) for algorithm in find_algorithms([])))
WARM = 24  # steps after which the covariances of these shapes have full rank: before, their bases may be any
# Random numbers that a matrix optimizer divides by: the condition of its factors times float64's rounding.
LOOSE = {"SOAP": 1e-6, "KronPSGD": 1e-8, "Muon": 1e-9}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_twelve_steps_equal_the_reference(variant) -> None:
    rng = np.random.default_rng(5)
    start = {case.name: normal(case, rng, "float32") for case in CASES}
    shapes = {case.name: case.shape for case in CASES}
    ours, theirs = variant.make(device="cpu"), variant.make(reference)
    wanted = {name: value.copy() for name, value in start.items()}
    for t in range(WARM if variant.algorithm.name == "SOAP" else 0):
        theirs.step_batch(
            (case.name, case.shape, wanted[case.name], gradient(case, rng, "float32", t)) for case in CASES
        )
        theirs.end_iteration()
    if theirs.iteration:
        ours.load_state_dict(theirs.state_dict())
    params = {name: torch.from_numpy(value.copy()) for name, value in wanted.items()}
    for t in range(12):
        grads = {case.name: gradient(case, rng, "float32", t) for case in CASES}
        with stepped_on_host():
            ours.step_batch((name, shapes[name], params[name], torch.from_numpy(grads[name])) for name in params)
            ours.end_iteration()
        theirs.step_batch((name, shapes[name], wanted[name], grads[name]) for name in params)
        theirs.end_iteration()
    tolerance = LOOSE.get(variant.algorithm.name, 1e-12)
    for name, value in wanted.items():
        scale = np.abs(value).max(initial=1.0)
        np.testing.assert_allclose(params[name].numpy(), value, rtol=0, atol=tolerance * scale, err_msg=name)
    state = ours.state_dict()
    assert all(value.dtype == torch.float64 for key, value in state.items() if "/" in key and torch.is_tensor(value))


@pytest.mark.parametrize("name", ["AdamW", "Lion", "Adafactor"])
def test_gradients_of_another_format(name) -> None:
    """A float32 gradient of a float64 parameter, and a float64 one of a float32 parameter, are converted."""
    algorithm = getattr(rlx_gpu.optim, name)
    options = {} if name == "Adafactor" else {"lr": 1e-2}
    for param_dtype, grad_dtype in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        grad = torch.randn(40, 50, dtype=torch.float32)
        found = []
        for dtype in (grad_dtype, param_dtype):
            param = torch.nn.Parameter(torch.ones(40, 50, dtype=param_dtype))
            with stepped_on_host():
                optimizer = algorithm([param], **options)
                rlx = rlx_gpu.AdamW(lr=1e-2)
                assert rlx is not None
                if dtype == param_dtype:
                    param.grad = grad.to(dtype)
                    optimizer.step()
                else:
                    trait = getattr(rlx_gpu, name)(**options)
                    trait.step("p", (40, 50), param, grad.to(dtype))
            found.append(param.detach().clone())
        torch.testing.assert_close(*found, rtol=0, atol=0)


def test_a_scale_is_not_rounded() -> None:
    param = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    param.grad = torch.ones(3, dtype=torch.float64)
    with stepped_on_host():
        rlx_gpu.optim.SGD([param], lr=1.0).step(grad_scale=1 / 3)
    assert param.tolist() == [-1 / 3] * 3
