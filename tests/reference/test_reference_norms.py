"""Norms and clipping: the formula, and entries that are not finite."""

from __future__ import annotations

import numpy as np
import pytest

from rlx_gpu.reference import global_grad_clip_scale, has_nonfinite, l2_norm

GRADS = [np.array([[3.0, 0.0]]), np.array(4.0), np.zeros((0, 2)), np.array([12.0], np.float32)]
DIRTY = [np.array([3.0, np.nan]), np.array([np.inf, 4.0]), np.array([12.0, -np.inf])]


def test_l2_norm():
    assert l2_norm(np.full((2, 2), -2.0)) == 4.0
    assert l2_norm(np.zeros((0,))) == 0.0
    assert l2_norm(np.array([3.0, np.nan, np.inf, 4.0])) == 5.0
    assert l2_norm(np.full(4, 1e30, np.float32)) == pytest.approx(2e30)


@pytest.mark.parametrize("grads", [GRADS, DIRTY], ids=["finite", "nonfinite"])
@pytest.mark.parametrize(
    ("max_norm", "scale"), [(1.3, 0.1), (13.0, 1.0), (20.0, 1.0), (0.0, 0.0), (np.inf, 1.0)], ids=str
)
def test_clip_scale(grads, max_norm, scale):
    assert global_grad_clip_scale(iter(grads), max_norm) == pytest.approx(scale)


def test_clip_scale_of_nothing():
    assert global_grad_clip_scale([], 1.0) == 1.0
    assert global_grad_clip_scale([np.zeros(3)], 0.0) == 1.0


@pytest.mark.parametrize("max_norm", [-1.0, np.nan, None], ids=str)
def test_clip_scale_refuses_a_bad_max_norm(max_norm):
    with pytest.raises(ValueError, match=r"max_norm must be .*\[0, inf\]"):
        global_grad_clip_scale(GRADS, max_norm)


def test_has_nonfinite():
    assert not has_nonfinite(GRADS)
    assert not has_nonfinite([])
    assert has_nonfinite(DIRTY)
    assert has_nonfinite([np.zeros(2), np.array([np.inf])])
