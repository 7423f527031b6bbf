"""The script that writes the golden trajectories: it declares what is stored, and computes it again."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data import make_trajectories as script
from numpy.testing import assert_array_equal

STORED = dict(np.load(script.FILE))
CASES = script.declared()


def test_what_is_stored_is_declared():
    assert json.loads(str(STORED["index"])) == script.index()
    arrays = {f"{key}/{name}" for key in CASES for name in ("p0", "grads", "params")}
    assert STORED.keys() == {"index", *arrays}
    for key, case in CASES.items():
        assert STORED[f"{key}/p0"].shape == case.shape
        assert STORED[f"{key}/params"].shape == STORED[f"{key}/grads"].shape == (case.steps, *case.shape)
    assert {case.source for case in CASES.values()} == script.SOURCES.keys()


@pytest.mark.parametrize("key", [key for key, case in CASES.items() if script.installed(case)])
def test_the_package_computes_what_is_stored(key):
    found = script.computed(key, CASES[key], STORED)
    np.testing.assert_allclose(found, STORED[f"{key}/params"], rtol=0, atol=CASES[key].atol)


def test_a_case_is_added_by_its_declaration(monkeypatch):
    """With inputs that its key decides; the others stay as they are."""
    added = script.Case("SGD", "torch.optim.SGD", {"lr": 0.1, "weight_decay": 0.5}, (3, 2), steps=2)
    monkeypatch.setattr(script, "declared", lambda: {**CASES, "072_SGD": added})
    arrays = script.made(STORED)
    for key, value in STORED.items():
        if key != "index":
            assert_array_equal(arrays[key], value)
    start, grads, params = (arrays[f"072_SGD/{name}"] for name in ("p0", "grads", "params"))
    np.testing.assert_allclose(params[0], start - 0.1 * (grads[0] + 0.5 * start), rtol=1e-14)
    again = script.made({**STORED, **arrays})
    assert again.keys() == arrays.keys()
    for key, value in arrays.items():
        assert_array_equal(again[key], value)


def test_numbers_stay_without_the_package_and_are_refused_against_it(monkeypatch):
    case = CASES["000_SGD"]
    moved = {**STORED, "000_SGD/params": STORED["000_SGD/params"] + 1e-9}
    with pytest.raises(ValueError, match=r"^000_SGD: torch.optim.SGD is 1.0e-09 off what is stored, allowed 1e-12$"):
        script.trajectory("000_SGD", case, moved)
    monkeypatch.setattr(script, "installed", lambda case: False)
    assert_array_equal(script.trajectory("000_SGD", case, moved), moved["000_SGD/params"])
    with pytest.raises(ValueError, match=r"^072_SGD: torch.optim.SGD is not installed, and no numbers are stored$"):
        script.trajectory("072_SGD", case, STORED)
