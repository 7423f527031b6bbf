"""A model for the GPU lane: tensors of awkward shapes and places, and the reference that they are held to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from variants import VARIANTS

import rlx_gpu

STEPS = 3
NUMEL = 1 << 20


def make(variant: str, params: Any, **more: Any) -> Any:
    """The torch face of a variant."""
    name, hyper = VARIANTS[variant]
    return getattr(rlx_gpu.optim, name)(params, **{**hyper, **more})


def make_params(device: str, numel: int = NUMEL) -> list[torch.nn.Parameter]:
    """Two large vectors, a matrix and a small vector, with gradients."""
    shapes = [(numel,), (numel // 1024, 1024), (numel + 7,), (13,)]
    params = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def make_tensors(dtype: torch.dtype, device: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """One tensor of each kind: tiny, beside a block's edge, tall, wide, transposed, channels last, unaligned, empty."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    return {
        "one": random(1),
        "scalar": random(),
        "127": random(127),
        "1024": random(1024),
        "1025": random(1025),
        "tall": random(97, 5),
        "wide": random(3, 136),
        "tiles": random(32, 256),
        "transposed": random(6, 9).T,
        "channels-last": random(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "unaligned": random(1060)[1:1057],
        "empty": random(0, 4),
    }


def make_grads(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Contiguous gradients, whatever the memory order of the parameters."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype).to(tensor.device)
        for name, tensor in tensors.items()
    }


def run(optimizer: Any, tensors: dict[str, torch.Tensor], steps: range = range(STEPS), **options: Any) -> None:
    """An iteration of the trait for each seed."""
    for seed in steps:
        grads = make_grads(tensors, seed)
        optimizer.step_batch([(name, t.shape, t, grads[name]) for name, t in tensors.items()], **options)
        optimizer.end_iteration()


def run_reference(variant: tuple[str, dict[str, Any]], steps: range = range(STEPS)) -> dict[str, Any]:
    """The parameters after the same steps from the same float32 numbers, in float64."""
    name, hyper = variant
    tensors = make_tensors(torch.float32, "cpu")
    optimizer = getattr(rlx_gpu.reference, name)(**hyper)
    params = {key: tensor.double().contiguous().numpy() for key, tensor in tensors.items()}
    for seed in steps:
        grads = make_grads(tensors, seed)
        optimizer.step_batch((key, param.shape, param, grads[key].double().numpy()) for key, param in params.items())
        optimizer.end_iteration()
    return params


def assert_close(tensors: dict[str, torch.Tensor], expected: dict[str, Any], tolerance: float) -> None:
    """Every parameter within the tolerance, relative to its largest value."""
    for name, want in expected.items():
        got = tensors[name].detach().double().cpu().numpy()
        atol = tolerance * np.abs(want).max(initial=0.0)
        np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)
