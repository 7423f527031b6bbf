"""Models to step, copies of all that a step may change, and comparisons down to the bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

SHAPES = {"weight": (4, 6), "bias": (5,), "scale": ()}


def make_params(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.nn.Parameter]:
    """A matrix, a vector and a scalar, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES.values()]


def set_grads(params: Sequence[torch.Tensor], seed: int) -> None:
    """Gradients that depend on the seed alone."""
    generator = torch.Generator().manual_seed(1000 + seed)
    for param in params:
        grad = torch.randn(param.shape, generator=generator).to(param.device, param.dtype)
        param.grad = grad


def take_steps(optimizer: torch.optim.Optimizer, params: Sequence[torch.Tensor], seeds: Sequence[int]) -> None:
    """One step with the gradients of each seed."""
    for seed in seeds:
        set_grads(params, seed)
        optimizer.step()


def bits(value: Any) -> Any:
    """The bytes of a tensor or array with its format and place; anything else as it is."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor):
        return value
    dense = value.detach().cpu().contiguous().reshape(-1)
    return str(value.dtype), tuple(value.shape), str(value.device), dense.view(torch.uint8).numpy().tobytes()


def snapshot(optimizer: Any, params: Mapping[str, Any] | Sequence[Any]) -> dict[Any, Any]:
    """Parameters, every state slot, step counts and hyperparameters, for either face."""
    named = params if isinstance(params, Mapping) else dict(enumerate(params))
    result = {("param", name): bits(param) for name, param in named.items()}
    saved = optimizer.state_dict()
    if "param_groups" not in saved:
        return result | {("state", key): bits(value) for key, value in saved.items()}
    for index, group in enumerate(saved["param_groups"]):
        result |= {("group", index, key): bits(value) for key, value in group.items()}
    for index, state in saved["state"].items():
        result |= {("state", index, slot): bits(value) for slot, value in state.items()}
    return result


def assert_same(actual: Mapping[Any, Any], expected: Mapping[Any, Any]) -> None:
    """Equal down to the bit, NaN included; names what differs."""
    assert actual.keys() == expected.keys()
    different = [key for key, value in expected.items() if actual[key] != value]
    assert not different, f"changed: {different}"


def assert_close_states(actual: Mapping[Any, Any], expected: Mapping[Any, Any], rtol: float = 2e-5) -> None:
    """Equal up to rounding, relative to the largest value of each tensor, or of a slot over all parameters.

    A single momentum may cancel to almost nothing, and then has no digits of its own.
    """
    assert actual.keys() == expected.keys()
    scales: dict[Any, float] = {}
    for key, value in expected.items():
        if isinstance(value, (torch.Tensor, np.ndarray)) and torch.as_tensor(value).numel():
            kind = slot_of(key)
            scales[kind] = max(scales.get(kind, 0.0), torch.as_tensor(value).detach().abs().max().item())
    for key, value in expected.items():
        if isinstance(value, (torch.Tensor, np.ndarray)):
            want, got = (torch.as_tensor(x).detach().double() for x in (value, actual[key]))
            scale = scales.get(slot_of(key), 0.0)
            torch.testing.assert_close(
                got, want, rtol=0, atol=rtol * scale + 1e-30, msg=lambda text, key=key: f"{key}: {text}"
            )


def slot_of(key: Any) -> Any:
    """The slot of a trait's state key "<slot>/<name>"; other keys stand for themselves."""
    return key.partition("/")[0] if isinstance(key, str) and "/" in key else key
