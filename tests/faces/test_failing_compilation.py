"""A compilation that fails, or is interrupted, fails before a step has changed anything."""

from __future__ import annotations

import pytest
import torch
from snapshots import assert_same, make_params, set_grads, snapshot, take_steps
from variants import VARIANTS

from rlx_gpu import optim
from rlx_gpu.engine.launch import Launch


def make(variant, params, **more):
    name, hyper = VARIANTS[variant]
    return getattr(optim, name)(params, **{**hyper, **more})


def compilations(monkeypatch):
    """Counts what is compiled; `fail` names the one that is interrupted."""
    made, real = [], Launch._compile

    def spied(launch):
        made.append(launch.kernel.__name__)
        if len(made) == fail["at"]:
            raise KeyboardInterrupt
        real(launch)

    fail = {"at": 0}
    monkeypatch.setattr(Launch, "_compile", spied)
    return made, fail


@pytest.mark.parametrize("variant", ["NAdamW", "LAMB", "Adafactor", "Muon", "SOAP", "KronPSGD"])
def test_a_step_is_whole_or_not_at_all(variant, monkeypatch, path):
    """Wherever the first one is interrupted; the next goes on as if it had not been."""
    made, fail = compilations(monkeypatch)
    params = make_params()
    optimizer = make(variant, params, skip_nonfinite=True)
    take_steps(optimizer, params, [0])
    count = len(made)
    assert count >= 3 and "words_kernel" in made
    wanted = snapshot(optimizer, params)
    for at in range(1, count + 1):
        params = make_params()
        optimizer = make(variant, params, skip_nonfinite=True)
        made.clear()
        fail["at"] = at
        set_grads(params, 0)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
        assert all(map(torch.equal, params, make_params()))
        assert not any(state["step"].item() for state in optimizer.state.values() if state)
        fail["at"] = 0
        take_steps(optimizer, params, [0])
        assert_same(snapshot(optimizer, params), wanted)
