"""The kernels against the reference: every variant, storage format, shape and layout; parameters and every slot."""

from __future__ import annotations

import functools

import pytest
from kernel_cases import ALL_CASES, CASES, FEW, FORMAT_CASES, MANY_TILES
from kernel_tolerances import FLOAT32, STORAGES, errors
from kernel_trials import Trial, expected_launches, recorded_launches
from kernel_variants import VARIANTS

# Lanes that a mask switches off are computed all the same, on zeros.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
HESSIAN_STEPS = (1, 5)


def update_hessian(trial):
    """Gives an estimate of the Hessian now and then to the optimizers that take one."""
    if trial.t in HESSIAN_STEPS and hasattr(trial.kernels, "update_hessian"):
        trial.update_hessian()


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_kernels_agree_with_the_reference(variant, storage):
    """All cases take two steps, the shapes of the first list as many as the storage format asks for."""
    trial = Trial(variant, ALL_CASES if storage is FLOAT32 else FORMAT_CASES, storage)
    for step in range(1, max(storage.steps) + 1):
        cases = CASES if step > 2 else trial.cases
        with recorded_launches() as made:
            trial.step(cases)
        wanted = expected_launches(variant.specs({len(case.shape) for case in cases}))
        assert sorted(made, key=repr) == sorted(wanted, key=repr)
        if step in storage.steps:
            trial.check()
        update_hessian(trial)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_parameter_counts_its_own_steps_and_has_its_own_lr_scale(variant):
    scales = {FEW[0].name: 0.5, FEW[2].name: 0.0}
    trial = Trial(variant, FEW, lr_scale=scales)
    for cases in (FEW[:2], FEW, FEW[1:], FEW):
        trial.step(cases)
        trial.check()
    counts = {key: int(value) for key, value in trial.actual().items() if key.startswith("step/")}
    assert counts == {f"step/{case.name}": count for case, count in zip(FEW, (3, 4, 3, 3), strict=True)}


@pytest.mark.parametrize("chosen", [v for v in VARIANTS if hasattr(v.specs({2})[0], "accumulate")], ids=str)
def test_factored_moments_of_matrices_of_many_tiles(chosen):
    """More tiles in a row and in a column than are added at once, and more rows than fit into one block."""
    trial = Trial(chosen, MANY_TILES)
    for _ in range(2):
        trial.step()
        trial.check()


@functools.cache
def trajectory(variant):
    """The parameters after five steps of the kernels and of the reference, and how far they may be apart."""
    trial = Trial(variant, FEW)
    for _ in range(5):
        trial.step()
        update_hessian(trial)
    found, wanted = (
        {key: value for key, value in arrays.items() if key.startswith("param/")}
        for arrays in (trial.actual(), trial.wanted())
    )
    return found, wanted, {key: trial.slack(key, value) for key, value in wanted.items()}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_no_other_optimizer_passes(variant):
    """The negative control: the kernels fail the same comparison against the reference of every other variant."""
    found, _, slack = trajectory(variant)
    formats = dict.fromkeys(found, "float32")
    agree = [rival for rival in VARIANTS if not errors(found, trajectory(rival)[1], slack, formats)]
    assert agree == [variant]
