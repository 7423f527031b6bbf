"""Norms and clipping: against NumPy, torch's clip_grad_norm_, and inside the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from snapshots import assert_close_states, make_params, set_grads
from test_trait import Capsule
from variants import BASE

import rlx_gpu
from rlx_gpu import optim, reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SHAPES = {"1": (1,), "127": (127,), "1024": (1024,), "1025": (1025,), "3x5": (3, 5), "0-d": (), "empty": (0,)}
ROUNDING = 2e-6  # float32 squares, summed in float32 within a block of 1024 and in float64 beyond


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_l2_norm(shape, dtype, path):
    x = torch.randn(SHAPES[shape]).to(DTYPES[dtype])
    norm = rlx_gpu.l2_norm(x)
    assert norm.dtype == torch.float32 and norm.shape == ()
    assert norm.item() == pytest.approx(x.double().norm().item(), rel=ROUNDING)
    if path == "kernels":  # float64 has no codec; so that every case launches
        rlx_gpu.l2_norm(torch.ones(1))


LAYOUTS = {
    "transposed": lambda: torch.randn(4, 6).T,
    "gaps": lambda: torch.randn(50)[::3],
    "unaligned": lambda: torch.randn(2000)[1:],
    "expanded": lambda: torch.tensor(0.5).expand(4, 3),
    "parameter": lambda: torch.nn.Parameter(torch.randn(7)),
    "dlpack": lambda: Capsule(torch.arange(6.0)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_l2_norm_of_layouts(layout, path):
    x = LAYOUTS[layout]()
    values = x.tensor if isinstance(x, Capsule) else x
    norm = rlx_gpu.l2_norm(x)
    assert norm.item() == pytest.approx(values.double().norm().item(), rel=ROUNDING)
    assert not norm.requires_grad


def test_numpy_gives_numbers():
    x = np.random.default_rng(0).normal(size=(3, 4))
    assert rlx_gpu.l2_norm(x) == pytest.approx(np.linalg.norm(x)) and isinstance(rlx_gpu.l2_norm(x), float)
    scale = rlx_gpu.global_grad_clip_scale([x, x.astype(np.float32)], 0.1)
    assert scale == pytest.approx(reference.global_grad_clip_scale([x, x], 0.1)) and isinstance(scale, float)
    assert rlx_gpu.global_grad_clip_scale([], 1.0) == 1.0
    assert rlx_gpu.global_grad_clip_scale([None], 1.0) == 1.0


def test_mixed_dtypes_and_kinds(path):
    grads = [torch.randn(1025), torch.randn(3, 4).bfloat16(), torch.randn(5).half(), torch.randn(2).double(), None]
    arrays = [grad.double().numpy() for grad in grads[:-1]]
    expected = reference.global_grad_clip_scale(arrays, 2.0)
    assert rlx_gpu.global_grad_clip_scale(grads, 2.0).item() == pytest.approx(expected, rel=ROUNDING)
    mixed = [grads[0].numpy(), Capsule(grads[2]), grads[1], grads[3]]
    assert rlx_gpu.global_grad_clip_scale(mixed, 2.0).item() == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_entries_that_are_not_finite_are_left_out(dtype, path):
    x = torch.arange(1.0, 7.0).to(DTYPES[dtype])
    x[1], x[3], x[5] = float("nan"), float("inf"), -float("inf")
    expected = (1 + 9 + 25) ** 0.5
    assert rlx_gpu.l2_norm(x).item() == pytest.approx(expected, rel=ROUNDING)
    assert rlx_gpu.global_grad_clip_scale([x, x], 1.0).item() == pytest.approx(1 / (expected * 2**0.5), rel=ROUNDING)
    assert rlx_gpu.l2_norm(torch.full((3,), float("nan"))).item() == 0.0


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 5.0, 6.0, float("inf")])
def test_the_factor_is_one_within_max_norm(max_norm, path):
    grads = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    expected = min(1.0, max_norm / 5.0)
    assert rlx_gpu.global_grad_clip_scale(grads, max_norm).item() == pytest.approx(expected, rel=ROUNDING)
    assert rlx_gpu.global_grad_clip_scale([torch.zeros(3)], max_norm).item() == 1.0


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Lion", "LAMB"])
def test_clipping_inside_the_step_is_clip_grad_norm(name, max_norm, path):
    """Where torch adds 1e-6 to the norm, nothing is added here: far below the tolerance."""
    own, other = make_params(), make_params()
    ours, theirs = getattr(optim, name)(own, **BASE), getattr(optim, name)(other, **BASE)
    for seed in range(3):
        set_grads(own, seed)
        set_grads(other, seed)
        ours.step(grad_scale=rlx_gpu.global_grad_clip_scale([param.grad for param in own], max_norm))
        torch.nn.utils.clip_grad_norm_(other, max_norm)
        theirs.step()
    assert_close_states(dict(enumerate(own)), dict(enumerate(other)))


@pytest.mark.parametrize("max_norm", [-1.0, float("nan"), "1", None])
def test_bad_max_norm(max_norm):
    with pytest.raises(ValueError, match=r"max_norm must be .*\[0, inf\]"):
        rlx_gpu.global_grad_clip_scale([torch.ones(2)], max_norm)


NO_FLOATS = {
    "integers": torch.ones(3, dtype=torch.int32),
    "complex": torch.ones(3, dtype=torch.complex64),
    "sparse": torch.ones(3).to_sparse(),
    "list": [1.0, 2.0],
    "number": 3.0,
}


@pytest.mark.parametrize("kind", NO_FLOATS)
def test_bad_input(kind):
    with pytest.raises(TypeError, match="expected a"):
        rlx_gpu.l2_norm(NO_FLOATS[kind])
    with pytest.raises(TypeError, match="expected a"):
        rlx_gpu.global_grad_clip_scale([torch.ones(2), NO_FLOATS[kind]], 1.0)
