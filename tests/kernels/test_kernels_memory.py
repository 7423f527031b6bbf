"""Which memory a step touches: nothing beside its tensors, nothing that was not written before, nothing anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_cases import ALL_CASES, Case
from kernel_trials import Trial, all_bits, assert_same_bits, bits
from torch.utils._python_dispatch import TorchDispatchMode
from variants import ELEMENTWISE

from rlx_gpu.engine import launch
from rlx_gpu.parity.cases import normal

SHAPES = {"row": (37,), "long": (1031,), "matrix": (5, 131), "tile": (32, 128), "volume": (2, 3, 5)}
POISONED = tuple(case for case in ALL_CASES if case.name in ("odd", "tall", "cube", "grad_transposed", "grad_strided"))


def poisoned(make):
    """The allocation function, but its memory is full of NaN, or of the largest integer."""

    def made(*args, **options):
        tensor = make(*args, **options)
        if tensor.is_meta or tensor.numel() == 0:
            return tensor
        return tensor.fill_(float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)

    return made


@pytest.mark.parametrize("chosen", ELEMENTWISE, ids=str)
def test_fresh_memory_is_written_before_it_is_read(chosen, monkeypatch):
    """With skip_nonfinite, which launches everything that a step without it does, and more."""
    results = []
    for poison in (False, True):
        with monkeypatch.context() as patch:
            if poison:
                patch.setattr(torch, "empty", poisoned(torch.empty))
                patch.setattr(torch, "empty_like", poisoned(torch.empty_like))
            trial = Trial(chosen, POISONED, skip_nonfinite=True)
            for _ in range(2):
                trial.advance()
            results.append(all_bits(trial.kernels, trial.params))
    assert_same_bits(*results)


class Guarded:
    """A tensor at an odd place inside a larger buffer whose other elements must not change."""

    def __init__(self, values, dtype, shift):
        values = torch.from_numpy(values)
        self.buffer = torch.full((values.numel() + 300,), -7.5, dtype=dtype)
        self.inside = slice(128 + shift, 128 + shift + values.numel())
        self.tensor = self.buffer[self.inside].view(values.shape)
        self.tensor.copy_(values)
        self.before = bits(self.buffer)

    def outside(self, words):
        return np.delete(words, np.arange(self.buffer.numel())[self.inside])

    def check(self, *, unchanged):
        now = bits(self.buffer)
        np.testing.assert_array_equal(self.outside(now), self.outside(self.before))
        assert np.array_equal(now, self.before) == unchanged


@pytest.mark.parametrize(("dtype", "shift"), [(torch.float32, 1), (torch.bfloat16, 0)], ids=["unaligned", "aligned"])
@pytest.mark.parametrize("chosen", ELEMENTWISE, ids=str)
def test_neighbours_and_gradients_are_never_written(chosen, dtype, shift):
    rng = np.random.default_rng(6)
    draw = lambda shape: normal(Case("x", shape), rng, "bfloat16")  # noqa: E731
    params = {name: Guarded(draw(shape), dtype, shift) for name, shape in SHAPES.items()}
    grads = {name: Guarded(draw(shape), dtype, shift) for name, shape in SHAPES.items()}
    optimizer = chosen.make()
    items = [(name, shape, params[name].tensor, grads[name].tensor) for name, shape in SHAPES.items()]
    optimizer.step_batch(items)  # makes the state, which is then moved next to guards as well
    states = []
    for state in optimizer._states.values():
        for slot, value in state.items():
            if value.ndim:
                states.append(Guarded(value.numpy() * 1.0, torch.float32, shift))
                state[slot] = states[-1].tensor
    optimizer.end_iteration()
    for grad in grads.values():  # what follows the gradient alone would not change otherwise
        grad.tensor.mul_(0.5)
        grad.before = bits(grad.buffer)
    optimizer.step_batch(items)
    for param in params.values():
        param.check(unchanged=False)
    for grad in grads.values():
        grad.check(unchanged=True)
    for state in states:
        state.check(unchanged=not state.tensor.any())  # Sophia's Hessian, which a step leaves at zero


class Sizes(TorchDispatchMode):
    """Notes how many elements every torch operation makes anew."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in inputs:
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("moved", [False, True], ids=["same gradients", "new gradients"])
@pytest.mark.parametrize("options", [{}, {"skip_nonfinite": True}], ids=["plain", "guarded"])
@pytest.mark.parametrize("chosen", ELEMENTWISE, ids=str)
def test_the_steady_state_allocates_nothing_as_large_as_a_parameter(chosen, options, moved, monkeypatch):
    """Kernels are left out: they allocate nothing, their interpreter does."""
    made = []
    monkeypatch.setattr(launch, "launch", lambda kernel, programs, *args, **constants: made.append(kernel))
    shapes = {"vector": (50_000,), "matrix": (250, 200)}
    params = {name: torch.ones(shape) for name, shape in shapes.items()}
    optimizer = chosen.make(**options)
    grads = [{name: torch.ones(shape) for name, shape in shapes.items()} for _ in range(4)]
    sizes = Sizes()
    for t in range(4):
        current = grads[t if moved else 0]
        items = [(name, shape, params[name], current[name]) for name, shape in shapes.items()]
        if t < 2:
            optimizer.step_batch(items)
        else:
            with sizes:
                optimizer.step_batch(items, grad_scale=1.0 / t)
        optimizer.end_iteration()
    assert made
    assert sizes.largest < 1000


def test_the_steady_state_test_would_notice():
    with Sizes() as sizes:
        torch.ones(1000).view(10, 100).mul_(2)
    assert sizes.largest == 1000
    with Sizes() as sizes:
        torch.ones(10) + torch.ones(2000)[:10]
    assert sizes.largest == 2000


def test_poison_is_read_back():
    assert poisoned(torch.empty)(3).isnan().all()
