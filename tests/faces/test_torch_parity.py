"""A transformer trained with torch.optim and with rlx_gpu.optim has the same loss curve."""

from __future__ import annotations

import copy

import pytest
import torch
from transformer import WIDTH, batches, make_transformer, train

from rlx_gpu import optim
from rlx_gpu.kernels import factored

STEPS = 100
TOLERANCE = 1e-4

ADAMW = {"lr": 3e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
CASES = {
    "SGD-momentum": ("SGD", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "dampening": 0.1}),
    "SGD-nesterov": ("SGD", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}),
    "Adam": ("Adam", torch.optim.Adam, {"lr": 3e-3, "weight_decay": 1e-3}),
    "AdamW": ("AdamW", torch.optim.AdamW, ADAMW),
    "NAdamW": ("NAdamW", torch.optim.NAdam, {"lr": 3e-3, "weight_decay": 0.1, "momentum_decay": 4e-3}),
    "RAdam": ("RAdam", torch.optim.RAdam, {"lr": 1e-2, "weight_decay": 1e-3}),
    "RAdam-decoupled": (
        "RAdam",
        torch.optim.RAdam,
        {"lr": 1e-2, "weight_decay": 1e-1, "decoupled_weight_decay": True},
    ),
    "Adafactor": ("Adafactor", torch.optim.Adafactor, {}),
}
# What torch needs besides to follow the same convention: its Adafactor clamps at eps1 and eps1² where the paper adds
# eps1 to the square, and its lr is the cap of the paper's relative schedule.
TORCH_ONLY = {"NAdamW": {"decoupled_weight_decay": True}, "Adafactor": {"lr": 1e-2, "eps": (1e-15, 1e-3)}}


def curves(case):
    """The losses with torch and with ours, from one state."""
    name, theirs, hyper = CASES[case]
    model = make_transformer(blocks=1 if name == "Adafactor" else 2)  # six launches a step take long interpreted
    optimizer = theirs(model.parameters(), **{**hyper, **TORCH_ONLY.get(name, {})})
    data = batches(STEPS)
    twin = copy.deepcopy(model)
    ours = getattr(optim, name)(twin.parameters(), **hyper)
    return train(model, optimizer, data), train(twin, ours, data)


@pytest.fixture
def tiles_of_the_models_width(monkeypatch):
    """Tiles that the model's matrices fill: interpreted, a partly filled one costs thirty times as much."""
    monkeypatch.setattr(factored, "TILE_COLS", WIDTH)
    monkeypatch.setattr(factored, "PART_ROWS", factored.TILE_ROWS)
    factored.constants.cache_clear()
    yield
    factored.constants.cache_clear()


@pytest.mark.parametrize("case", CASES)
def test_loss_curve_is_torchs(case, path, tiles_of_the_models_width):
    expected, actual = curves(case)
    assert expected[-10:].mean() < 0.8 * expected[0], "nothing was learnt"
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


def test_another_optimizer_has_another_curve():
    """The negative control: the tolerance tells optimizers apart."""
    data = batches(STEPS)
    curve, other = (
        train(model, make(model.parameters(), **ADAMW), data)
        for make in (torch.optim.AdamW, torch.optim.Adam)
        for model in [make_transformer()]
    )
    assert (other - curve).abs().max() > 100 * TOLERANCE
