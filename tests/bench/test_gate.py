"""The gate before a measurement: right kernels pass, wrong ones are refused."""

from __future__ import annotations

import numpy as np
import pytest

import rlx_gpu
from rlx_gpu.bench import gate
from rlx_gpu.compile_variants import STORAGES


@pytest.mark.parametrize("storage", STORAGES)
def test_the_gate_lets_right_kernels_pass(storage: str) -> None:
    gate.check("Lion", storage, "cpu")


@pytest.mark.parametrize(("optimizer", "other"), [("AdamW", "Adam"), ("KronPSGD", "Muon"), ("SGD", "Lion")])
@pytest.mark.parametrize("storage", ["float32", "bfloat16_stochastic"])
def test_the_gate_refuses_a_wrong_kernel(
    library_products, monkeypatch, optimizer: str, other: str, storage: str
) -> None:
    wrong = getattr(rlx_gpu, other)
    monkeypatch.setitem(vars(rlx_gpu), optimizer, lambda momentum=None, **options: wrong(**options))
    with pytest.raises(gate.ParityError, match=rf"{optimizer} in {storage} on cpu: tensor .* differs"):
        gate.check(optimizer, storage, "cpu")


def test_the_gate_refuses_what_is_no_number() -> None:
    values, start = np.ones(3), np.zeros(3)
    for optimizer in ("AdamW", "Muon"):
        assert gate.difference(optimizer, "float32", values, values, start) == ""
        assert gate.difference(optimizer, "float32", np.array([1.0, np.nan, 1.0]), values, start)
