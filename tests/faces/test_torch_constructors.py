"""Constructors take what torch's take, in its order and with its defaults."""

from __future__ import annotations

import inspect

import pytest
import torch
from snapshots import make_params, set_grads
from variants import OPTIMIZERS

from rlx_gpu import optim
from rlx_gpu.table import TABLE

SHARED = ["SGD", "Adam", "AdamW", "RAdam"]  # whose numbers are torch's, and whose arguments
POSITIONAL = {
    "SGD": [(0.1,), (0.1, 0.9), (0.1, 0.9, 0.1, 0.2), (0.1, 0.9, 0.0, 0.2, True)],
    "Adam": [(0.1,), (0.1, (0.8, 0.9), 1e-6, 0.2, True)],
    "AdamW": [(0.1,), (0.1, (0.8, 0.9)), (0.1, (0.8, 0.9), 1e-6, 0.2, True)],
    "RAdam": [(0.1,), (0.1, (0.8, 0.9), 1e-6, 0.2), (0.1, (0.8, 0.9), 1e-6, 0.2, True)],
}
CASES = [(name, given) for name, cases in POSITIONAL.items() for given in [(), *cases]]


@pytest.mark.parametrize("path", ["host"], indirect=True)
@pytest.mark.parametrize(("name", "given"), CASES, ids=str)
def test_arguments_by_position_and_defaults_are_torchs(name, given, path):
    """The same steps in float64, past RAdam's threshold."""
    own, other = make_params(torch.float64), make_params(torch.float64)
    ours, theirs = getattr(optim, name)(own, *given), getattr(torch.optim, name)(other, *given)
    for seed in range(12):
        for optimizer, params in ((ours, own), (theirs, other)):
            set_grads(params, seed)
            optimizer.step()
    for param, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(param, wanted, rtol=1e-11, atol=1e-12)
    shared = ours.param_groups[0].keys() & theirs.param_groups[0].keys() - {"params", "fused", "foreach"}
    for key in shared:
        assert ours.param_groups[0][key] == theirs.param_groups[0][key], key


@pytest.mark.parametrize("name", SHARED)
def test_the_order_is_torchs(name):
    """As far as torch takes arguments by position."""
    torchs = [
        one.name
        for one in inspect.signature(getattr(torch.optim, name)).parameters.values()
        if one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    ours = inspect.signature(getattr(optim, name)).parameters
    assert list(ours)[: len(torchs)] == torchs
    assert all(ours[key].kind is ours[key].POSITIONAL_OR_KEYWORD for key in torchs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_hyperparameter_goes_by_position(name):
    hypers = TABLE[name].hyperparameters
    by_position = getattr(optim, name)(make_params(), *(hyper.default for hyper in hypers))
    by_default = getattr(optim, name)(make_params())
    assert {**by_position.defaults} == {**by_default.defaults}
    with pytest.raises(TypeError, match=rf"{name}: takes lr, .* by position, got {len(hypers) + 1} values"):
        getattr(optim, name)(make_params(), *(hyper.default for hyper in hypers), None)
    with pytest.raises(TypeError, match=f"{name}: got 'lr' by position and by name"):
        getattr(optim, name)(make_params(), 0.1, lr=0.1)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adafactor", "Muon"])
def test_a_learning_rate_in_a_tensor_of_one_element(name, shape, path):
    """It stays in the group, where schedulers write into it."""
    own, other = make_params(), make_params()
    lr = torch.full(shape, 0.5)
    ours, plain = getattr(optim, name)(own, lr), getattr(optim, name)(other, 0.5)
    assert ours.param_groups[0]["lr"] is lr
    for seed, rate in enumerate((0.5, 0.25)):
        lr.fill_(rate)
        plain.param_groups[0]["lr"] = rate
        for optimizer, params in ((ours, own), (plain, other)):
            set_grads(params, seed)
            optimizer.step()
    assert all(map(torch.equal, own, other))


def test_a_learning_rate_of_several_elements_is_refused():
    with pytest.raises(ValueError, match="AdamW: lr must be a number"):
        optim.AdamW(make_params(), lr=torch.ones(2))
