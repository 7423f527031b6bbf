"""Sophia's estimates of the Hessian's diagonal, given by parameter name."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rlx_gpu import reference


def test_sophia_update_hessian():
    optimizer = reference.Sophia(lr=0.1, betas=(0.9, 0.75))
    optimizer.update_hessian("w", np.array([4.0, 8.0]))  # before the first step, as the paper does
    assert_array_equal(optimizer.state_dict()["hessian/w"], [1.0, 2.0])
    assert optimizer.state_dict()["step/w"] == 0
    optimizer.step("w", (2,), np.ones(2), np.ones(2))
    optimizer.update_hessian("w", np.zeros(2, np.float32))
    assert_array_equal(optimizer.state_dict()["hessian/w"], [0.75, 1.5])
    with pytest.raises(ValueError, match=r"'w': shape \(3,\) does not match its state's \(2,\)"):
        optimizer.update_hessian("w", np.zeros(3))
    with pytest.raises(TypeError, match="'w': estimate must be a NumPy array, got list"):
        optimizer.update_hessian("w", [0.0, 0.0])
    assert not hasattr(reference.AdamW, "update_hessian")


def test_sophia_skips_a_nonfinite_estimate():
    optimizer = reference.Sophia(lr=0.1, skip_nonfinite=True)
    optimizer.update_hessian("w", np.ones(2))
    before = optimizer.state_dict()["hessian/w"]
    optimizer.update_hessian("w", np.array([1.0, np.nan]))
    assert_array_equal(optimizer.state_dict()["hessian/w"], before)
