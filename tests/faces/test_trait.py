"""The trait against the reference's: the same constructor, the same behaviour, for every kind of array."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from snapshots import SHAPES, assert_close_states, assert_same, snapshot
from variants import BASE, OPTIMIZERS, VARIANTS

import rlx_gpu
from rlx_gpu import reference


class Capsule:
    """An array of another library: nothing but `__dlpack__`, as CuPy's on a GPU."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


WRAPPERS = {
    "torch": lambda array: torch.from_numpy(array),
    "parameter": lambda array: torch.nn.Parameter(torch.from_numpy(array)),
    "numpy": lambda array: array,
    "dlpack": lambda array: Capsule(torch.from_numpy(array)),
}
SCALES = {"bias": 0.5, "weight": 2.0}


def make(variant, package=rlx_gpu, **more):
    name, hyper = VARIANTS[variant]
    return getattr(package, name)(**{**hyper, **more})


def arrays(seed, dtype=np.float32):
    """One float32 array for each name; all kinds of input are views of such."""
    rng = np.random.default_rng(seed)
    return {name: np.array(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def run(optimizer, params, seeds, wrap=WRAPPERS["numpy"], **options):
    """An iteration for each seed, all parameters in one batch."""
    for seed in seeds:
        grads = arrays(100 + seed)
        optimizer.step_batch([(n, SHAPES[n], wrap(p), wrap(grads[n])) for n, p in params.items()], **options)
        optimizer.end_iteration()


def as_arrays(state):
    return {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in state.items()}


@pytest.mark.parametrize(
    ("variant", "kind"),
    [(variant, "numpy") for variant in VARIANTS]
    + [(variant, kind) for variant in ("AdamW", "Adafactor") for kind in WRAPPERS if kind != "numpy"],
)
def test_does_what_the_reference_does(variant, kind, path):
    """Parameters in place and every slot, with an lr_scale; for each kind of array."""
    own, expected = arrays(0), arrays(0)
    ours, theirs = make(variant, lr_scale=SCALES), make(variant, reference, lr_scale=SCALES)
    run(ours, own, range(3), WRAPPERS[kind])
    run(theirs, expected, range(3))
    assert_close_states(own, expected)
    state, wanted = as_arrays(ours.state_dict()), theirs.state_dict()
    assert set(state) - set(wanted) == {"state_dtype", "rounding", "seed"}
    assert_close_states({key: state[key] for key in wanted}, wanted)
    assert state["iteration"] == 3 and state["step/weight"] == 3 and state["optimizer"] == VARIANTS[variant][0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_optimizer_does_not(variant, path):
    """The negative control of the test above."""
    other = "Lion" if not variant.startswith("Lion") else "AdamW"
    own, expected = arrays(0), arrays(0)
    run(make(variant), own, range(2))
    run(make(other, reference), expected, range(2))
    with pytest.raises(AssertionError):
        assert_close_states(own, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_step_by_step_is_step_batch(variant, path):
    batched, single = arrays(0), arrays(0)
    one, other = make(variant), make(variant)
    run(one, batched, range(2))
    for seed in range(2):
        grads = arrays(100 + seed)
        for name in reversed(SHAPES):
            other.step(name, SHAPES[name], single[name], grads[name])
        other.end_iteration()
    assert_close_states(single, batched, rtol=0)
    left, right = one.state_dict(), other.state_dict()
    assert_close_states({key: left[key] for key in right}, right, rtol=0)


def test_batches_may_differ_from_iteration_to_iteration(path):
    """Each parameter counts its own steps, in whatever company it is stepped."""
    own, expected = arrays(0), arrays(0)
    ours, theirs = make("AdamW"), make("AdamW", reference)
    for seed, names in enumerate((["weight"], ["bias", "weight"], ["scale", "bias"], ["weight"])):
        grads = arrays(100 + seed)
        for optimizer, params in ((ours, own), (theirs, expected)):
            optimizer.step_batch([(name, SHAPES[name], params[name], grads[name]) for name in names])
            optimizer.end_iteration()
    assert_close_states(own, expected)
    assert [ours.state_dict()[f"step/{name}"] for name in SHAPES] == [3, 2, 1]


class Halved(rlx_gpu.AdamW):
    """lr_scale by overriding it."""

    def lr_scale(self, name):
        return 0.5


LR_SCALES = {
    "mapping": lambda: make("AdamW", lr_scale=dict.fromkeys(SHAPES, 0.5)),
    "callable": lambda: make("AdamW", lr_scale=lambda name: 0.5),
    "override": lambda: Halved(**BASE),
}


@pytest.mark.parametrize("how", LR_SCALES)
def test_lr_scale(how, path):
    own, expected = arrays(0), arrays(0)
    run(LR_SCALES[how](), own, range(2))
    run(make("AdamW", lr=BASE["lr"] / 2), expected, range(2))
    assert_close_states(own, expected, rtol=0)
    assert LR_SCALES[how]().lr_scale("weight") == 0.5


def test_lr_scale_may_change(path):
    factors = {"weight": 1.0}
    own, expected = arrays(0), arrays(0)
    ours, theirs = make("Lion", lr_scale=factors), make("Lion", reference, lr_scale=factors)
    for seed, factor in enumerate((1.0, 0.25, 0.0, 3.0)):
        factors["weight"] = factor
        run(ours, own, [seed])
        run(theirs, expected, [seed])
    assert_close_states(own, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_set_lr(name, path):
    own, expected = arrays(0), arrays(0)
    ours, theirs = make(name), make(name, reference)
    for optimizer, params in ((ours, own), (theirs, expected)):
        run(optimizer, params, [0])
        optimizer.set_lr(0.01)
        run(optimizer, params, [1])
        assert optimizer.hyper["lr"] == 0.01
    assert_close_states(own, expected)
    with pytest.raises(ValueError, match=r"lr must be in \[0, inf\).*got -1.0"):
        ours.set_lr(-1.0)
    assert ours.hyper["lr"] == 0.01


def test_a_second_step_in_an_iteration_is_an_error(path):
    optimizer, params, grads = make("AdamW"), arrays(0), arrays(1)
    optimizer.step("bias", SHAPES["bias"], params["bias"], grads["bias"])
    before = snapshot(optimizer, params)
    items = [(name, SHAPES[name], params[name], grads[name]) for name in SHAPES]
    for again in (items, [items[0], items[0]]):
        with pytest.raises(ValueError, match=r"parameter '(bias|weight)': stepped twice without end_iteration"):
            optimizer.step_batch(again)
    assert_same(snapshot(optimizer, params), before)
    optimizer.end_iteration()
    optimizer.step_batch(items)
    assert optimizer.iteration == 1


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 0.25), (torch.bfloat16, torch.tensor(0.25))], ids=["number", "tensor-bfloat16"]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_grad_scale_is_the_gradients_factor(name, dtype, scale, path):
    """A power of two: scaling before and inside gives the same bits."""
    runs = []
    for inside in (True, False):
        params = {key: torch.from_numpy(value).to(dtype) for key, value in arrays(0).items()}
        optimizer = make(name)
        for seed in range(2):
            grads = {key: torch.from_numpy(value).to(dtype) for key, value in arrays(100 + seed).items()}
            factor = 1.0 if inside else 0.25
            items = [(key, SHAPES[key], params[key], grads[key] * factor) for key in SHAPES]
            optimizer.step_batch(items, grad_scale=scale if inside else 1.0)
            optimizer.end_iteration()
        runs.append(snapshot(optimizer, params))
    assert_same(*runs)


def test_grad_scale_holds_for_one_step_only(path):
    own, expected = arrays(0), arrays(0)
    ours, plain = make("SGD"), make("SGD")
    run(ours, own, [0], grad_scale=torch.tensor(1.0))
    run(ours, own, [1], grad_scale=0.0)
    run(ours, own, [2])
    run(plain, expected, [0])
    run(plain, expected, [1], grad_scale=torch.tensor(0.0))
    run(plain, expected, [2])
    assert_close_states(own, expected, rtol=0)


def test_gradients_of_another_dtype_than_their_parameter(path):
    params = {name: torch.from_numpy(array).bfloat16() for name, array in arrays(0).items()}
    twins = {name: value.clone() for name, value in params.items()}
    grads = {name: torch.from_numpy(array).bfloat16() for name, array in arrays(1).items()}
    one, other = make("AdamW"), make("AdamW")
    one.step_batch([(name, SHAPES[name], params[name], grads[name].float()) for name in SHAPES])
    other.step_batch([(name, SHAPES[name], twins[name], grads[name]) for name in SHAPES])
    assert_same(snapshot(one, params), snapshot(other, twins))


def test_a_read_only_numpy_gradient_is_read(path):
    own, expected = arrays(0), arrays(0)
    for params, writeable in ((own, False), (expected, True)):
        optimizer, grads = make("AdamW"), arrays(1)
        for grad in grads.values():
            grad.flags.writeable = writeable
        optimizer.step_batch([(name, SHAPES[name], params[name], grads[name]) for name in SHAPES])
    assert_close_states(own, expected, rtol=0)


def test_a_step_invalidates_graphs_that_saved_the_parameter(path):
    param = torch.randn(4, requires_grad=True)
    loss = (param * param).sum()
    make("AdamW").step("p", (4,), param, torch.ones(4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_both_packages_have_one_constructor(name):
    ours, theirs = (inspect.signature(getattr(package, name)) for package in (rlx_gpu, reference))
    assert [p for p in ours.parameters if p != "device"] == list(theirs.parameters)
    differing = {p for p in theirs.parameters if ours.parameters[p].default != theirs.parameters[p].default}
    assert differing == {"state_dtype"}  # float64 in the reference


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["NAdamW(momentum_decay=0.9)", "Adafactor"])
def test_copies_go_on_alike(name, copier, path):
    params = arrays(0)
    optimizer = make(name, state_dtype="bfloat16", lr_scale=SCALES, skip_nonfinite=True)
    run(optimizer, params, range(2))
    twin, twins = copier(optimizer), copy.deepcopy(params)
    assert_same(snapshot(twin, twins), snapshot(optimizer, params))
    for one, own in ((optimizer, params), (twin, twins)):
        run(one, own, range(2, 4))
    left, right = snapshot(twin, twins), snapshot(optimizer, params)
    assert_same(left, right)
