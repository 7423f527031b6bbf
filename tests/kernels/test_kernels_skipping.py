"""The host never learns which steps the device has skipped, and every number is as if they had never been."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_trials import all_bits, assert_same_bits
from variants import named

from rlx_gpu import reference
from rlx_gpu.parity.tolerances import ONE_STEP
from rlx_gpu.parity.trial import largest, numbers

VARIANTS = ("AdamW", "NAdamW(momentum_decay=0.9)", "SGD(momentum=0.9, dampening=0.9)", "RAdam", "Adafactor(lr=None)")
SHAPES = {"a": (5,), "b": (1, 3), "late": (4,)}
STEPS = 16
FIRST_OF_LATE = 6


def is_bad(t):
    """Alone, in a row, first and last."""
    return t in (1, 2, 5, 8, 9, 10, 11, 12, 13, 16) or t % 7 == 0


def gradients(t, bad):
    rng = np.random.default_rng([t, 4])
    grads = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    if bad:
        grads["a"][t % 5] = (np.nan, np.inf)[t % 2]
    return {name: grad for name, grad in grads.items() if name != "late" or t >= FIRST_OF_LATE}


def run(optimizer, as_array, *, split=False, steps=STEPS, half=False):
    """All steps, with a learning rate that changes from step to step; returns the parameters.

    With `half` one parameter is in bfloat16, whose random bits hang on the step count.
    """
    rng = np.random.default_rng(12)
    params = {name: as_array(rng.normal(size=shape).astype(np.float32)) for name, shape in SHAPES.items()}
    if half:
        params["b"] = params["b"].bfloat16()
    rates = optimizer.hyper["lr"] is not None
    for t in range(1, steps + 1):
        if rates:
            optimizer.set_lr(0.05 + 0.01 * (t % 6))
        grads = gradients(t, is_bad(t))
        items = [(name, SHAPES[name], params[name], as_array(grad)) for name, grad in grads.items()]
        for batch in [items[:1], items[1:]] if split else [items]:
            optimizer.step_batch(batch)
        optimizer.end_iteration()
    return params


@pytest.mark.parametrize("split", [False, True], ids=["one call", "two calls"])
@pytest.mark.parametrize("name", VARIANTS)
def test_skipped_steps_change_no_bit(name, split):
    """Parameters, slots, counters, random bits and counts are those of an optimizer that never saw the bad steps."""
    guarded, plain = (named(name).make(skip_nonfinite=skip, rounding="stochastic") for skip in (True, False))
    params = run(guarded, torch.tensor, split=split, half=True)
    expected = run(Without(plain), torch.tensor, split=split, half=True)
    assert_same_bits(all_bits(guarded, params), all_bits(plain, expected))


@pytest.mark.parametrize("name", VARIANTS)
def test_guarded_steps_and_the_reference_agree(name):
    optimizer = named(name).make(skip_nonfinite=True)
    params = run(optimizer, torch.tensor)
    good = named(name).make(reference)
    expected = run(Without(good), lambda array: array.astype(np.float64))
    found = {f"param/{key}": value.double().numpy() for key, value in params.items()} | numbers(optimizer.state_dict())
    wanted = {f"param/{key}": value for key, value in expected.items()} | numbers(good.state_dict())
    counts = {key: int(value) for key, value in wanted.items() if key.startswith("step/")}
    bad = sum(map(is_bad, range(1, STEPS + 1)))
    assert counts["step/a"] == STEPS - bad
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        allowed = ONE_STEP.allowed(key.partition("/")[0], max(largest(value), 1.0), 0.0)
        np.testing.assert_allclose(found[key], value, rtol=0, atol=allowed, err_msg=key)


class Without:
    """Keeps calls with bad gradients from an optimizer altogether."""

    def __init__(self, optimizer):
        self.optimizer, self.hyper = optimizer, optimizer.hyper
        self.set_lr, self.end_iteration = optimizer.set_lr, optimizer.end_iteration

    def step_batch(self, items):
        if all(np.isfinite(grad).all() for _, _, _, grad in items):
            self.optimizer.step_batch(items)
