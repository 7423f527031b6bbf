"""The kernels against the reference: every variant, storage format, shape and layout; parameters and every slot."""

from __future__ import annotations

import functools

import pytest
from kernel_cases import ALL_CASES, CASES, FEW, FORMAT_CASES, MANY_TILES
from kernel_trials import (
    FLOAT32,
    STORAGES,
    ForcedTrial,
    Trial,
    expected_launches,
    recorded_launches,
    specs_of,
)
from variants import ELEMENTWISE

from rlx_gpu.parity.intervals import distance, nearest
from rlx_gpu.parity.tolerances import ONE_STEP
from rlx_gpu.parity.trial import largest


def advance(trial, cases):
    """A step of these parameters, in exactly the launches that it should take."""
    with recorded_launches() as made:
        trial.advance(cases)
    wanted = expected_launches(specs_of(trial.variant, {len(case.shape) for case in cases}))
    if trial.estimates:
        (only,) = trial.variant.algorithm.rules.HESSIAN.passes
        wanted += [("rows_kernel", None) for _ in trial.estimates]
        wanted += [("fused_step_kernel", only.rule) for estimate in trial.estimates.values() if estimate.size]
    assert sorted(made, key=repr) == sorted(wanted, key=repr)


@pytest.mark.parametrize("variant", ELEMENTWISE, ids=str)
def test_errors_do_not_add_up(variant):
    """Over 17 steps in float32, of which all cases take two."""
    trial = Trial(variant, ALL_CASES)
    for step in range(1, 18):
        advance(trial, ALL_CASES if step <= 2 else CASES)
        if step in (1, 2, 17):
            trial.check()


@pytest.mark.parametrize("formats", STORAGES, ids=str)
@pytest.mark.parametrize("variant", ELEMENTWISE, ids=str)
def test_kernels_agree_with_the_reference(variant, formats):
    cases = ALL_CASES if formats is FLOAT32 else FORMAT_CASES
    trial = ForcedTrial(variant, cases, formats)
    for _ in range(2):
        advance(trial, cases)
        trial.check()


@pytest.mark.parametrize("variant", ELEMENTWISE, ids=str)
def test_every_parameter_counts_its_own_steps_and_has_its_own_lr_scale(variant):
    scales = {FEW[0].name: 0.5, FEW[2].name: 0.0}
    trial = Trial(variant, FEW, lr_scale=scales)
    for cases in (FEW[:2], FEW, FEW[1:], FEW):
        trial.advance(cases)
        trial.check()
    counts = {key: int(value) for key, value in trial.after.items() if key.startswith("step/")}
    assert counts == {f"step/{case.name}": count for case, count in zip(FEW, (3, 4, 3, 3), strict=True)}


@pytest.mark.parametrize("chosen", [v for v in ELEMENTWISE if hasattr(v.spec(2), "accumulate")], ids=str)
def test_factored_moments_of_matrices_of_many_tiles(chosen):
    """More tiles in a row and in a column than are added at once, and more rows than fit into one block."""
    trial = Trial(chosen, MANY_TILES)
    for _ in range(2):
        trial.advance()
        trial.check()


@functools.cache
def trajectory(variant):
    """The parameters after five steps of the kernels and of the reference."""
    trial = Trial(variant, FEW)
    for _ in range(5):
        trial.advance()
    names = [f"param/{case.name}" for case in FEW]
    return tuple([arrays[name] for name in names] for arrays in (trial.after, trial.wanted))


@pytest.mark.parametrize("variant", ELEMENTWISE, ids=str)
def test_no_other_optimizer_passes(variant):
    """The negative control: the kernels fail the same comparison against the reference of every other variant."""

    def agrees(rival):
        pairs = zip(trajectory(variant)[0], trajectory(rival)[1], strict=True)
        off = [distance(found, wanted, nearest(found, "float32")).max() / largest(wanted) for found, wanted in pairs]
        return max(off) <= ONE_STEP.relative

    assert [rival for rival in ELEMENTWISE if agrees(rival)] == [variant]
