"""Replays of a captured step are steps, to the bit: every rule in every storage, recorded in place of captured."""

from __future__ import annotations

import pytest
import torch
from recorder import Recorder
from snapshots import assert_same, snapshot
from variants import SCHEDULED, VARIANTS

from rlx_gpu import optim
from rlx_gpu.parity.storages import find_storages

CAPTURED = [variant for variant, (name, _) in VARIANTS.items() if name not in SCHEDULED]
# Each storage has every rule; those that differ most in what is captured are tried by `make test`.
STORAGES = [
    pytest.param(one, id=str(one), marks=() if one.name in ("float32", "bfloat16_stochastic") else pytest.mark.long)
    for one in find_storages()
]
SHAPES = ((4, 6), (6, 9), (5,), (1030,), (4, 6))
BAD = 2  # the replay whose gradients hold a NaN


class Model:
    """Parameters with gradients that stay where they are, and an optimizer of them."""

    def __init__(self, variant, storage, **options):
        generator = torch.Generator().manual_seed(0)
        self.dtypes = getattr(torch, storage.param), getattr(torch, storage.grad)
        tensors = [torch.randn(shape, generator=generator).to(self.dtypes[0]) for shape in SHAPES]
        self.params = [torch.nn.Parameter(tensor) for tensor in tensors]
        for param in self.params:
            param.grad = torch.zeros_like(param)
        name, hyper = VARIANTS[variant]
        self.lr = torch.tensor(0.05)
        options = {"state_dtype": storage.state, "rounding": storage.rounding, "seed": 5, "lr": self.lr, **options}
        groups = [{"params": self.params[:3]}, {"params": self.params[3:], "weight_decay": 0.2}]
        self.optimizer = getattr(optim, name)(groups, **{**hyper, **options})

    def fill(self, seed, bad=False):
        """Writes new gradients in the place of the old ones."""
        generator = torch.Generator().manual_seed(100 + seed)
        for param in self.params:
            param.grad.copy_(torch.randn(param.shape, generator=generator))
        if bad:
            self.params[1].grad.view(-1)[-1] = float("nan")

    def step(self, seed, bad=False):
        self.fill(seed, bad)
        self.optimizer.step()

    def snapshot(self):
        return snapshot(self.optimizer, self.params)


def captured_and_stepped(variant, storage, **options):
    """Two equal models, the first with a step captured."""
    own, twin = (Model(variant, storage, **options) for _ in range(2))
    for seed in range(2):
        own.step(seed)
        twin.step(seed)
    before, recorder = own.snapshot(), Recorder()
    with recorder.capture():
        own.optimizer.step()
    assert_same(own.snapshot(), before)
    return own, twin, recorder


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("variant", CAPTURED)
def test_replays_are_steps(variant, storage):
    """With a NaN in between, and a learning rate on the device that changes."""
    own, twin, recorder = captured_and_stepped(variant, storage, skip_nonfinite=True)
    for seed in range(5):
        for model in (own, twin):
            model.lr.mul_(0.7)
        own.fill(seed, bad=seed == BAD)
        recorder.replay()
        twin.step(seed, bad=seed == BAD)
    assert_same(own.snapshot(), twin.snapshot())
    assert {state["step"].item() for state in own.optimizer.state.values()} == {6.0}


@pytest.mark.parametrize("variant", CAPTURED)
def test_replays_unscale_clip_and_count_as_steps_do(variant):
    """GradScaler's numbers lie in tensors, of which one has a replay skipped; hyperparameters are sent in between."""
    (storage,) = find_storages(["float32"])
    models = own, twin = [Model(variant, storage, fused=True, max_grad_norm=2.0) for _ in range(2)]
    given = [(torch.tensor(8.0), torch.tensor(0.0)) for _ in models]
    for model, (scale, found_inf) in zip(models, given, strict=True):
        model.optimizer.grad_scale, model.optimizer.found_inf = scale, found_inf
        model.step(0)
    recorder = Recorder()
    with recorder.capture():
        own.optimizer.step()
    for seed in range(6):
        for model, (scale, found_inf) in zip(models, given, strict=True):
            scale.copy_(2.0**seed)
            found_inf.copy_(float(seed == BAD))
            if seed == 3:
                model.optimizer.max_grad_norm = 0.5
                for group in model.optimizer.param_groups:
                    group["weight_decay"] = 0.3
        if seed == 3:
            own.optimizer.send_hyperparameters()
        own.fill(seed)
        recorder.replay()
        twin.step(seed)
        assert torch.equal(own.optimizer.grad_norm, twin.optimizer.grad_norm)
    assert_same(own.snapshot(), twin.snapshot())
    assert {state["step"].item() for state in own.optimizer.state.values()} == {6.0}


@pytest.mark.parametrize("variant", ["AdamW", "Adafactor", "Muon"])
def test_steps_and_replays_by_turns(variant):
    """With other gradients, in other places: a replay reads those that were captured, a step those that there are."""
    (storage,) = find_storages(["float32"])
    own, twin, recorder = captured_and_stepped(variant, storage, max_grad_norm=1.0)
    kept = [param.grad for param in own.params]
    for seed in range(6):
        if seed % 2:
            for param in own.params:
                param.grad = torch.empty_like(param)
            own.step(seed)
        else:
            for param, grad in zip(own.params, kept, strict=True):
                param.grad = grad
            own.fill(seed)
            for param in own.params:
                param.grad = None
            recorder.replay()
        twin.step(seed)
    assert_same(own.snapshot(), twin.snapshot())


@pytest.mark.parametrize("variant", ["SGD(momentum=0.9)", "LAMB", "Adafactor", "Muon"])
def test_gradients_made_while_capturing(variant):
    """As where the backward pass is captured along: they lie where none lay before."""
    (storage,) = find_storages(["float32"])
    own, twin = (Model(variant, storage) for _ in range(2))
    own.step(0)
    twin.step(0)
    for param in own.params:
        param.grad = torch.zeros_like(param)
    recorder = Recorder()
    with recorder.capture():
        own.optimizer.step()
    for seed in range(3):
        own.fill(seed)
        recorder.replay()
        twin.step(seed)
    assert_same(own.snapshot(), twin.snapshot())


def test_a_step_that_was_skipped_skips_no_replay():
    """Of a step that was captured without anything that may skip it."""
    (storage,) = find_storages(["float32"])
    own, twin, recorder = captured_and_stepped("AdamW", storage, fused=True)
    own.optimizer.skip_nonfinite = True
    own.step(3, bad=True)
    own.optimizer.skip_nonfinite = False
    own.fill(4)
    recorder.replay()
    own.optimizer.found_inf = torch.tensor(1.0)
    own.step(5)
    own.fill(6)
    recorder.replay()
    for seed in (4, 6):
        twin.step(seed)
    assert_same(own.snapshot(), twin.snapshot())


def test_a_recording_is_not_a_step():
    """A control: nothing has happened without a replay, and a wrong learning rate shows."""
    (storage,) = find_storages(["float32"])
    own, twin, recorder = captured_and_stepped("AdamW", storage)
    own.fill(7)
    before = own.snapshot()
    own.lr.mul_(2.0)
    recorder.replay()
    twin.step(7)
    different = {key for key, value in own.snapshot().items() if twin.snapshot()[key] != value}
    assert before != own.snapshot() and ("param", 0) in different and ("state", 0, "step") not in different
