"""Parameters that come and go: the matrices that stay and those that left, and whose memory is whose."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from matrix_models import Pair, assert_below

import rlx_gpu
from rlx_gpu import optim

SHAPE = (16, 16)
NAMES = [f"expert{i}" for i in range(8)]
SLACK = 0.1  # of the state: less than one matrix's share
HYPER = {"SOAP": {"precondition_frequency": 3, "stagger": False}, "KronPSGD": {}}
pytestmark = pytest.mark.parametrize("name", HYPER)


def live_bytes() -> int:
    """Of all dense tensors in this process."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor and one.layout == torch.strided]
    found = [one.untyped_storage() for one in tensors if one.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())


def model() -> list[torch.nn.Parameter]:
    """Equal matrices with gradients."""
    params = [torch.nn.Parameter(torch.randn(SHAPE)) for _ in NAMES]
    for param in params:
        param.grad = torch.randn(SHAPE)
    return params


def assert_close(pair: Pair) -> None:
    assert_below(pair.errors(), 1e-3)


def test_every_set_is_stepped_like_the_reference(name):
    pair = Pair(name, HYPER[name], dict.fromkeys(NAMES[:4], SHAPE))
    for active in ((0, 1, 2, 3), (2,), (3, 0), (0, 1, 2, 3), (1, 0, 3)):
        pair.step(names=[NAMES[i] for i in active])
    assert_close(pair)


@pytest.mark.parametrize("count", [len(NAMES), 3])
def test_sets_and_orders_of_the_trait_leave_nothing_behind(name, count):
    optimizer, shuffled = getattr(rlx_gpu, name)(lr=0.01), random.Random(0)
    params, grads = ({one: torch.randn(SHAPE) for one in NAMES} for _ in range(2))

    def step(names):
        optimizer.step_batch([(one, SHAPE, params[one], grads[one]) for one in names])
        optimizer.end_iteration()

    step(NAMES)
    before = live_bytes()
    for _ in range(12):
        step(shuffled.sample(NAMES, count))
    state = sum(value.nbytes for value in optimizer.state_dict().values() if isinstance(value, torch.Tensor))
    assert live_bytes() < before + SLACK * state


def test_those_left_behind_keep_no_batch_alive(name):
    params = model()
    optimizer = getattr(optim, name)(params, lr=0.01)
    optimizer.step()
    before = live_bytes()
    order = random.Random(0).sample(params, len(params))
    for param in order[:-1]:
        param.grad = None
        optimizer.step()
        assert live_bytes() < before + SLACK * optim.state_bytes(optimizer)
    slots = [slot for state in optimizer.state.values() for slot in state.values() if slot.ndim]
    storages = {slot.untyped_storage().data_ptr(): slot.untyped_storage().nbytes() for slot in slots}
    assert sum(storages.values()) == optim.state_bytes(optimizer)
