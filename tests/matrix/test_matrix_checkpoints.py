"""Checkpoints of the matrix optimizers: resumed to the bit, in the middle of a period too; and torch's Muon's."""

from __future__ import annotations

import copy
import io

import pytest
import torch

import rlx_gpu
from rlx_gpu import optim
from rlx_gpu.matrix import products

HYPER = {
    "Muon": {},
    "SOAP": {"precondition_frequency": 4},
    "KronPSGD": {"momentum": 0.8},
}
SHAPES = ((9, 14), (9, 14), (14, 6), (8, 8), (11,))


@pytest.fixture(autouse=True)
def products_of_torch(monkeypatch):
    """The tiled products have tests of their own."""
    monkeypatch.setattr(products, "on_host", lambda device: True)


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(shape, generator=generator) for shape in SHAPES]
    tensors.append(torch.randn(10, 12, generator=generator).T)  # lies column by column
    return [torch.nn.Parameter(tensor) for tensor in tensors]


def steps(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], numbers: range) -> None:
    """Steps with gradients that depend on the number alone."""
    for number in numbers:
        generator = torch.Generator().manual_seed(100 + number)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


def through_a_file(state: object) -> object:
    """Saved and loaded."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("at", [1, 2, 6])
@pytest.mark.parametrize("name", HYPER)
def test_a_resumed_run_is_bit_identical(name, at, state_dtype):
    """Six steps of a period of four, refreshes staggered: the phases and the counters come along."""
    params = parameters()
    options = {"lr": 0.05, "weight_decay": 0.1, "state_dtype": state_dtype, **HYPER[name]}
    optimizer = getattr(optim, name)(params, **options)
    steps(optimizer, params, range(at))
    saved, resumed = through_a_file(optimizer.state_dict()), copy.deepcopy(params)
    other = getattr(optim, name)(resumed, lr=1.0)
    other.load_state_dict(saved)
    steps(optimizer, params, range(at, 11))
    steps(other, resumed, range(at, 11))
    for index, (one, two) in enumerate(zip(params, resumed, strict=True)):
        assert torch.equal(one, two), index
        assert optimizer.state[one].keys() == other.state[two].keys()
        for slot, value in optimizer.state[one].items():
            assert torch.equal(value, other.state[two][slot]), (index, slot)
            assert value.dtype == other.state[two][slot].dtype


@pytest.mark.parametrize("name", ["SOAP", "KronPSGD"])
def test_a_saved_state_does_not_change_with_later_steps(name):
    """Slots are views of batches: what the trait has handed out is a copy."""
    params = parameters()
    optimizer = getattr(rlx_gpu, name)(lr=0.05)
    items = [(str(i), tuple(p.shape), p.detach(), torch.ones_like(p)) for i, p in enumerate(params)]
    optimizer.step_batch(items)
    optimizer.end_iteration()
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    optimizer.step_batch(items)
    for key, value in saved.items():
        assert torch.equal(value, kept[key]) if isinstance(value, torch.Tensor) else value == kept[key], key


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", [None, "match_rms_adamw"])
def test_a_checkpoint_of_torchs_muon_goes_on_here(nesterov, adjust_lr_fn):
    """Its buffer is an average where ours is a sum; the steps agree to what bfloat16 leaves of them."""
    own, theirs = ([torch.nn.Parameter(torch.zeros(s)) for s in ((24, 24), (32, 12), (12, 32))] for _ in range(2))
    torchs = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=nesterov, adjust_lr_fn=adjust_lr_fn
    )
    steps(torchs, theirs, range(3))
    ours = optim.Muon(own, lr=1.0)
    ours.load_state_dict(through_a_file(torchs.state_dict()))
    for one, other in zip(own, theirs, strict=True):
        one.data.copy_(other)
        torch.testing.assert_close(ours.state[one]["momentum_buffer"], torchs.state[other]["momentum_buffer"] / 0.1)
    start = [param.detach().clone() for param in own]
    steps(torchs, theirs, range(3, 6))
    steps(ours, own, range(3, 6))
    assert ours.param_groups[0]["lr"] == 0.02 and ours.param_groups[0]["nesterov"] == nesterov
    for one, other, before in zip(own, theirs, start, strict=True):
        assert (one - other).norm() <= 0.03 * (other - before).norm()


def test_a_checkpoint_of_torchs_muon_with_other_groups_is_refused():
    theirs = torch.optim.Muon([torch.nn.Parameter(torch.zeros(4, 4))], lr=0.02)
    model = torch.nn.Linear(4, 4)
    with pytest.raises(ValueError, match="has 1 param groups, the optimizer 2"):
        optim.Muon(model.named_parameters(), lr=0.1).load_state_dict(theirs.state_dict())
