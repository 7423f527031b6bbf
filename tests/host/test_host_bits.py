"""The host's driver and the interpreted kernels, bit by bit: every rule without sums, in every storage."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from rlx_gpu.engine import launch
from rlx_gpu.engine.devices import stepped_on_host
from rlx_gpu.kernels.spec import RuleSpec
from rlx_gpu.parity.cases import DEFAULT_SHAPES, gradient, normal, parse_shapes, tensor_of
from rlx_gpu.parity.storages import find_storages
from rlx_gpu.parity.variants import find_algorithms, variants

CPU = torch.device("cpu")
SHAPES = parse_shapes(f"{DEFAULT_SHAPES},20x900,16400,40x9:transposed")  # more than a block of the host's
SPECIALS = (0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-39, -3e-41, 3e38, -3e38, 1e-20, 1.0, -1.0, 65520.0)
UNSIGNED = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def without_sums(variant, shape):
    """Whether a parameter of this shape is stepped without any sum."""
    spec = variant.spec(len(shape))
    return isinstance(spec, RuleSpec) and not any(one.sums for one in spec.passes)


TRIALS = [
    variant
    for variant in chain.from_iterable(variants(algorithm) for algorithm in find_algorithms([]))
    if any(without_sums(variant, case.shape) for case in SHAPES)
]


def same_bits(left, right):
    """Whether two tensors hold the same bits, a NaN being a NaN whatever its payload."""
    assert left.dtype == right.dtype and left.shape == right.shape
    nan = left.isnan()
    assert torch.equal(nan, right.isnan())
    bits = [one.contiguous().view(UNSIGNED[one.dtype]) if one.dtype in UNSIGNED else one for one in (left, right)]
    return torch.equal(bits[0][~nan], bits[1][~nan])


class Side:
    """One driver's optimizer and parameters."""

    def __init__(self, variant, storage, params, layouts):
        options = {"state_dtype": storage.state, "rounding": storage.rounding, "seed": 2**40 + 3}
        self.optimizer = variant.make(device=CPU, **options)
        self.storage, self.layouts = storage, layouts
        self.params = {name: tensor_of(value, storage.param, layouts[name], CPU) for name, value in params.items()}

    def step(self, grads, estimates):
        grads = {name: tensor_of(value, self.storage.grad, self.layouts[name], CPU) for name, value in grads.items()}
        with np.errstate(all="ignore"):
            items = [(name, grad.shape, self.params[name], grad) for name, grad in grads.items()]
            self.optimizer.step_batch(items, grad_scale=0.5)
            self.optimizer.end_iteration()
            for name, value in estimates.items():
                self.optimizer.update_hessian(name, tensor_of(value, self.storage.grad, self.layouts[name], CPU))

    def arrays(self):
        state = {key: value for key, value in self.optimizer.state_dict().items() if "/" in key}
        return {f"param/{name}": param for name, param in self.params.items()} | state


def run_both(variant, storage, params, layouts, action):
    """The action on a side of each driver; each must have run its own."""
    sides = []
    for host in (False, True):
        before = launch.launches.total(), launch.host_runs.total()
        if host:
            with stepped_on_host():
                side = Side(variant, storage, params, layouts)
                action(side)
        else:
            side = Side(variant, storage, params, layouts)
            action(side)
        ran = launch.launches.total() - before[0], launch.host_runs.total() - before[1]
        assert (ran[0] == 0) == host and (ran[1] > 0) == host
        sides.append(side)
    return sides


def assert_same(sides, context):
    interpreted, host = (side.arrays() for side in sides)
    assert interpreted.keys() == host.keys()
    for key in interpreted:
        left, right = interpreted[key], host[key]
        if isinstance(left, torch.Tensor):
            assert same_bits(left, right), f"{context}: {key}"
        else:
            assert left == right, f"{context}: {key}"


@pytest.mark.parametrize("storage", find_storages(), ids=str)
@pytest.mark.parametrize("variant", TRIALS, ids=str)
def test_steps_1_2_and_17(variant, storage):
    cases = [case for case in SHAPES if without_sums(variant, case.shape)]
    rng = np.random.default_rng(3)
    params = {case.name: normal(case, rng, storage.param) for case in cases}
    layouts = {case.name: case.layout for case in cases}
    grads = [{case.name: gradient(case, rng, storage.grad, t) for case in cases} for t in range(3)]
    sophia = hasattr(variant.algorithm.reference, "update_hessian")
    estimates = [
        {case.name: normal(case, rng, storage.grad, 20.0, mean=8.0) for case in cases if sophia} for _ in range(3)
    ]

    def steps(side):
        for t, (grad, estimate) in enumerate(zip(grads, estimates, strict=True)):
            if t == 2:
                state = side.optimizer.state_dict()
                side.optimizer.load_state_dict(state | {key: 16 for key in state if key.startswith("step/")})
            side.step(grad, estimate)
            found.append({key: value.clone() for key, value in side.arrays().items() if torch.is_tensor(value)})

    found = []
    sides = run_both(variant, storage, params, layouts, steps)
    assert_same(sides, "after step 17")
    for t, (left, right) in enumerate(zip(found[:3], found[3:], strict=True)):
        for key in left:
            assert same_bits(left[key], right[key]), f"step {t}: {key}"
    assert all(torch.isfinite(value).all() for key, value in found[0].items() if key.startswith("param/"))


@pytest.mark.parametrize("storage", find_storages(), ids=str)
@pytest.mark.parametrize("variant", TRIALS, ids=str)
def test_infinities_nan_signed_zeros_and_subnormals(variant, storage):
    """Every special number in the parameter against every one in the gradient, then in every slot as well."""
    count = len(SPECIALS)
    specials = np.array(SPECIALS, dtype=np.float32).astype(np.float64)
    with np.errstate(over="ignore"):
        params = {"p": np.repeat(specials, count)}
        grads = {"p": np.tile(specials, count)}
    sophia = hasattr(variant.algorithm.reference, "update_hessian")
    rng = np.random.default_rng(7)
    places = [rng.integers(0, count, count * count) for _ in range(4)]

    def steps(side):
        side.step(grads, grads if sophia else {})
        state = side.optimizer.state_dict()
        slots = [key for key, value in state.items() if "/" in key and torch.is_tensor(value) and value.ndim]
        with np.errstate(over="ignore"):
            changed = {
                key: torch.from_numpy(specials[place]).to(state[key].dtype)
                for key, place in zip(slots, places, strict=False)
            }
        side.optimizer.load_state_dict(state | changed)
        side.step({"p": np.roll(grads["p"], 7)}, {})

    sides = run_both(variant, storage, params, {"p": "contiguous"}, steps)
    assert_same(sides, "specials")


def test_other_numbers_are_told_apart():
    """The negative control: a last bit, and a zero's sign."""
    one = torch.tensor([1.0, 0.0, float("nan")])
    assert same_bits(one, torch.tensor([1.0, 0.0, -float("nan")]))
    assert not same_bits(one, torch.tensor([1.0, -0.0, float("nan")]))
    assert not same_bits(one, torch.tensor([1.0 + 2.0**-23, 0.0, float("nan")]))
