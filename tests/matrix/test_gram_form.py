"""How many steps the Gram form takes on R in 16 bits before it returns to X, and over which spectra that holds."""

from __future__ import annotations

import pytest
import torch
from spectra import HALVES, HARD, STEADY, expected, relative, step_by_step, with_singular_values

from rlx_gpu.matrix import newton_schulz as module
from rlx_gpu.matrix.newton_schulz import normalized
from rlx_gpu.reference.newton_schulz import COEFFICIENTS, schedule

ERROR = {dtype: torch.finfo(dtype).eps / 2 for dtype in HALVES}
TOLERATED = [case for case in STEADY if case[1] != "cans"]


@pytest.mark.parametrize("steps", [5, 7])
@pytest.mark.parametrize(("dtype", "coefficients"), TOLERATED, ids=str)
def test_the_gram_form_on_hard_spectra(dtype, coefficients, steps):
    """In the runs that are chosen, singular values stay in range: 1.2 in exact arithmetic, and noise where they are 0.

    The error is within four times that of rounding every operation to bfloat16.
    """
    triples = schedule(coefficients, steps)
    x = torch.stack([with_singular_values(values.tolist(), 120) for values in HARD.values()])
    wanted, start = expected(x, steps, coefficients), normalized(x, 1e-7, dtype)
    plain = step_by_step(start.bfloat16(), triples)
    found = module._gram(start, triples)
    assert (torch.linalg.matrix_norm(found.double(), 2) <= 2.0).all()
    for name, *matrices in zip(HARD, found, plain, wanted, strict=True):
        assert relative(matrices[0], matrices[2]) <= 4.0 * relative(matrices[1], matrices[2]), name


@pytest.mark.parametrize(
    ("coefficients", "steps", "lengths", "name"),
    [
        ("polar_express", 10, (10,), "steep"),
        ("polar_express", 5, (2, 3), "steep"),
        ("keller", 5, (1, 4), "steep"),
        ("keller", 10, (2, 3, 3, 2), "less steep"),
        ("quintic", 5, (3, 2), "one huge"),
    ],
    ids=str,
)
def test_longer_runs_would_leave_the_range_in_bfloat16(coefficients, steps, lengths, name, monkeypatch):
    """What `runs` avoids, each with the spectrum that shows it."""
    assert module.runs(schedule(coefficients, steps), ERROR[torch.bfloat16]) != lengths
    monkeypatch.setattr(module, "runs", lambda *_: lengths)
    start = normalized(with_singular_values(HARD[name].tolist(), 120)[None], 1e-7, torch.bfloat16)
    found = module._gram(start, schedule(coefficients, steps))[0].double()
    assert not (found.isfinite().all() and torch.linalg.matrix_norm(found, 2) <= 2.0)


def test_runs_of_two_end_in_three_where_that_is_tolerated():
    short = [(1,), (2,), (2, 1), (2, 2)]
    for dtype, error in ERROR.items():
        for name in COEFFICIENTS:
            found = [module.runs(schedule(name, steps), error) for steps in range(1, 9)]
            assert found[:4] == short and found[5::2] == [(2, 2, 2), (2, 2, 2, 2)]
            three = dtype == torch.float16 or name in ("keller", "quintic")
            assert found[4] == ((2, 3) if three else (2, 2, 1))
    assert module.runs(schedule("cans", 99), ERROR[torch.bfloat16]) == (*(2,) * 49, 1)
    assert module.runs(((0.0, 1.0, 1.0),) * 5, ERROR[torch.bfloat16]) == (2, 2, 1)


def test_polynomials_that_rounding_throws_out_of_range_are_kept_from_the_gram_form():
    for error in ERROR.values():
        tolerated = {name: module.tolerant(schedule(name, 5), error) for name in COEFFICIENTS}
        assert tolerated == {"keller": True, "quintic": True, "polar_express": True, "cans": False}
    assert not module.tolerant(schedule("cans", 100), ERROR[torch.bfloat16])
