"""A rule that has changed: checkpoints of the one before are refused by name, unless they are told to go on."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from snapshots import assert_same, make_params, snapshot, take_steps

import rlx_gpu
from rlx_gpu import optim, reference
from rlx_gpu.table import TABLE

REVISED = [name for name, algorithm in TABLE.items() if algorithm.revision[0] > 1]


def test_there_are_revised_rules():
    assert "RAdam" in REVISED and "AdamW" not in REVISED


@pytest.mark.parametrize("name", REVISED)
def test_the_torch_face(name):
    params = make_params()
    optimizer = getattr(optim, name)(params, lr=0.1)
    take_steps(optimizer, params, range(2))
    saved, before = optimizer.state_dict(), snapshot(optimizer, params)
    revision, words = TABLE[name].revision
    assert saved["param_groups"][0]["revision"] == revision
    assert "revision" not in optimizer.param_groups[0]
    older = copy.deepcopy(saved)
    del older["param_groups"][0]["revision"]
    with pytest.raises(
        ValueError, match=rf"param_groups\[0\]: is of revision 1 .*{words}.*set 'revision' .* to {revision}"
    ):
        optimizer.load_state_dict(older)
    assert_same(snapshot(optimizer, params), before)
    optimizer.load_state_dict(saved)
    assert_same(snapshot(optimizer, params), before)
    older["param_groups"][0]["revision"] = revision
    optimizer.load_state_dict(older)


@pytest.mark.parametrize("face", [rlx_gpu, reference], ids=["trait", "reference"])
@pytest.mark.parametrize("name", REVISED)
def test_states_by_name(name, face, tmp_path):
    """Also through NumPy's files, which make an array of every number."""
    optimizer = getattr(face, name)(lr=0.1)
    optimizer.step("w", (3,), np.ones(3, np.float32), np.ones(3, np.float32))
    optimizer.end_iteration()
    np.savez(tmp_path / "state.npz", **optimizer.state_dict())
    saved = dict(np.load(tmp_path / "state.npz"))
    older = {key: value for key, value in saved.items() if key != "revision"}
    with pytest.raises(ValueError, match="state dict: is of revision 1"):
        getattr(face, name)(lr=0.1).load_state_dict(older)
    getattr(face, name)(lr=0.1).load_state_dict(saved)


def test_torchs_checkpoints_have_none():
    params = make_params()
    theirs = torch.optim.RAdam(params, lr=0.1)
    take_steps(theirs, params, range(7))
    ours = optim.RAdam(copy.deepcopy(params), lr=0.1)
    ours.load_state_dict(theirs.state_dict())
    take_steps(theirs, params, range(7, 10))
    mine = [param for group in ours.param_groups for param in group["params"]]
    take_steps(ours, mine, range(7, 10))
    for param, wanted in zip(mine, params, strict=True):
        torch.testing.assert_close(param, wanted, rtol=1e-5, atol=1e-6)
