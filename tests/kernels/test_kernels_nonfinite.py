"""NaN and infinity in gradients: they go where the reference's go, or with skip_nonfinite nowhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_cases import Case, tensor_of
from kernel_trials import Trial, all_bits, assert_same_bits, bits
from variants import ELEMENTWISE

import rlx_gpu
from rlx_gpu.parity.cases import normal
from rlx_gpu.parity.tolerances import ONE_STEP

VALUES = {"nan": float("nan"), "plus": float("inf"), "minus": float("-inf")}
CASES = tuple(Case(f"{value}_{len(shape)}d", shape) for value in VALUES for shape in ((7,), (3, 5)))
CLEAN = (Case("clean", (11,)),)


@pytest.mark.parametrize("at", [1, 6])
@pytest.mark.parametrize("variant", ELEMENTWISE, ids=str)
def test_they_go_where_the_reference_s_go(variant, at):
    trial = Trial(variant, (*CASES, *CLEAN))
    for step in range(1, at + 2):
        trial.spoiled = {case.name: VALUES[case.name.split("_")[0]] for case in CASES} if step == at else {}
        trial.advance()
        if step < at:
            continue
        found, wanted = trial.after, trial.wanted
        assert found.keys() == wanted.keys()
        for key, expected in wanted.items():
            for kind in (np.isnan, np.isposinf, np.isneginf):
                label = f"step {step}, {key}: {kind.__name__}"
                np.testing.assert_array_equal(kind(found[key]), kind(expected), err_msg=label)
            finite = np.isfinite(expected)
            size = np.abs(expected[finite]).max(initial=0.0)
            assert np.all(np.abs(found[key][finite] - expected[finite]) <= ONE_STEP.relative * size + 1e-12), key
    assert np.isfinite(trial.after["param/clean"]).all()


class Run:
    """An optimizer on a float32, a half precision and a stochastically rounded parameter, whose bits are compared."""

    CASES = (Case("vector", (9,)), Case("matrix", (4, 6)), Case("half", (5, 2)))

    def __init__(self, variant, **options):
        self.optimizer = variant.make(rounding="stochastic", **options)
        rng = np.random.default_rng(8)
        dtypes = {"half": "bfloat16"}
        self.params = {
            case.name: tensor_of(normal(case, rng, dtype), dtype)
            for case in self.CASES
            for dtype in [dtypes.get(case.name, "float32")]
        }

    def step(self, t, bad=None, **options):
        """The step whose gradients are drawn for iteration `t`; `bad` goes into one of them."""
        rng = np.random.default_rng([t, 99])
        grads = {case.name: tensor_of(normal(case, rng, "float32"), "float32") for case in self.CASES}
        if bad is not None:
            grads["matrix"][1, 2] = bad
        self.optimizer.step_batch([(n, tuple(p.shape), p, grads[n]) for n, p in self.params.items()], **options)
        self.optimizer.end_iteration()

    def bits(self):
        return all_bits(self.optimizer, self.params)


@pytest.mark.parametrize("variant", ELEMENTWISE, ids=str)
def test_a_skipped_step_changes_nothing_and_leaves_no_trace(variant):
    skipping, clean = Run(variant, skip_nonfinite=True), Run(variant)
    skipping.step(0, VALUES["nan"])  # the very first
    for t in (1, 2):
        skipping.step(t)
        clean.step(t)
    before = skipping.bits()
    skipping.step(7, VALUES["plus"])
    skipping.step(8, VALUES["minus"], grad_scale=0.5)
    assert_same_bits(skipping.bits(), before)
    assert_same_bits(before, clean.bits())
    skipping.step(3)
    clean.step(3)
    assert_same_bits(skipping.bits(), clean.bits())
    assert skipping.optimizer.iteration == 6


def test_without_skip_nonfinite_nothing_is_skipped():
    run = Run(ELEMENTWISE[0])
    run.step(1, float("nan"))
    assert run.params["matrix"].isnan().sum() == 1


@pytest.mark.parametrize("bad", VALUES.values(), ids=VALUES)
def test_a_bad_hessian_estimate(bad):
    estimate = torch.ones(9)
    estimate[4] = bad
    results = []
    for options in ({}, {"skip_nonfinite": True}):
        optimizer, param = rlx_gpu.Sophia(0.1, **options), torch.ones(9)
        optimizer.step("p", (9,), param, torch.ones(9))
        before = bits(optimizer.state_dict()["hessian/p"])
        optimizer.update_hessian("p", estimate)
        results.append((before, optimizer.state_dict()["hessian/p"]))
    assert np.isfinite(results[0][1].numpy()).sum() == 8
    np.testing.assert_array_equal(results[0][1][4].numpy(), np.float32(bad))
    np.testing.assert_array_equal(bits(results[1][1]), results[1][0])
