"""The state of the torch face: checkpoints in the middle of a run, exchange with torch, formats that survive."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from snapshots import assert_close_states, assert_same, make_params, set_grads, snapshot, take_steps
from variants import BASE, TORCH, VARIANTS, torchs

from rlx_gpu import optim

SPLIT = 3
FORMATS = {
    "float32": (torch.float32, {}),
    "bfloat16-stochastic": (torch.bfloat16, {"rounding": "stochastic", "seed": 2**40 + 5, "state_dtype": "bfloat16"}),
    "bfloat16-params": (torch.bfloat16, {}),
    "float16-params": (torch.float16, {"state_dtype": "float32"}),
    "bfloat16-state": (torch.float32, {"state_dtype": "bfloat16"}),
}


def make(variant, params, **more):
    name, hyper = VARIANTS[variant]
    return getattr(optim, name)(params, **{**hyper, **more})


def copies(params):
    return [torch.nn.Parameter(param.detach().clone()) for param in params]


def through_a_file(saved):
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(
    ("variant", "storage"),
    [(variant, storage) for variant in VARIANTS for storage in ("float32", "bfloat16-stochastic")]
    + [(variant, storage) for variant in ("AdamW", "Adafactor") for storage in list(FORMATS)[2:]],
)
def test_a_resumed_run_is_bit_identical(variant, storage, path):
    """Saved to a file after some steps and loaded into a fresh optimizer with other settings."""
    dtype, options = FORMATS[storage]
    params = make_params(dtype)
    optimizer = make(variant, params, **options)
    take_steps(optimizer, params, range(SPLIT))
    saved = through_a_file(optimizer.state_dict())

    resumed = copies(params)
    fresh = make(variant, resumed, lr=0.5)
    fresh.load_state_dict(saved)
    assert_same(snapshot(fresh, resumed), snapshot(optimizer, params))
    for run, own in ((optimizer, params), (fresh, resumed)):
        take_steps(run, own, range(SPLIT, SPLIT + 2))
    assert_same(snapshot(fresh, resumed), snapshot(optimizer, params))


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("variant", ["AdamW", "NAdamW(momentum_decay=0.9)", "Adafactor"])
def test_copies_of_the_optimizer_go_on_alike(variant, copier, path):
    params = make_params()
    optimizer = make(variant, params, skip_nonfinite=True, state_dtype="bfloat16")
    take_steps(optimizer, params, range(SPLIT))
    if copier == "deepcopy":
        twin = copy.deepcopy(optimizer)
    elif copier == "pickle":
        twin = pickle.loads(pickle.dumps(optimizer))
    else:
        buffer = io.BytesIO()
        torch.save(optimizer, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    own = twin.param_groups[0]["params"]
    assert type(twin) is type(optimizer) and twin.skip_nonfinite
    assert own[0].data_ptr() != params[0].data_ptr()
    for run, members in ((optimizer, params), (twin, own)):
        take_steps(run, members, range(SPLIT, SPLIT + 2))
    assert_same(snapshot(twin, own), snapshot(optimizer, params))


@pytest.mark.parametrize("variant", TORCH)
def test_torchs_checkpoint_loads_here(variant, path):
    params = make_params()
    optimizer = torchs(variant, params)
    take_steps(optimizer, params, range(SPLIT))
    own = copies(params)
    ours = make(variant, own, lr=0.9)
    ours.load_state_dict(through_a_file(optimizer.state_dict()))
    assert ours.param_groups[0]["lr"] == BASE["lr"]
    for run, members in ((optimizer, params), (ours, own)):
        take_steps(run, members, range(SPLIT, SPLIT + 3))
    assert_close_states(dict(enumerate(own)), dict(enumerate(params)))


@pytest.mark.parametrize("variant", TORCH)
def test_our_checkpoint_loads_in_torch(variant, path):
    params = make_params()
    optimizer = make(variant, params)
    take_steps(optimizer, params, range(SPLIT))
    other = copies(params)
    theirs = torchs(variant, other, lr=0.9)
    theirs.load_state_dict(through_a_file(optimizer.state_dict()))
    for run, members in ((optimizer, params), (theirs, other)):
        take_steps(run, members, range(SPLIT, SPLIT + 3))
    assert_close_states(dict(enumerate(other)), dict(enumerate(params)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_loading_never_casts_state_to_the_parameters_dtype(variant, dtype, path):
    """torch's base class does: float32 moments of bfloat16 parameters come back rounded."""
    params = make_params(dtype)
    optimizer = make(variant, params)
    take_steps(optimizer, params, range(2))
    fresh = make(variant, copies(params))
    fresh.load_state_dict(optimizer.state_dict())
    for old, new in zip(optimizer.state.values(), fresh.state.values(), strict=True):
        for slot, value in old.items():
            assert new[slot].dtype == value.dtype != dtype
            assert torch.equal(new[slot], value)


def test_a_saved_state_is_not_touched_by_later_steps(path):
    """The step counts share memory inside the optimizer; a checkpoint has its own."""
    params = make_params()
    optimizer = make("AdamW", params)
    take_steps(optimizer, params, range(2))
    saved = optimizer.state_dict()
    take_steps(optimizer, params, range(2, 4))
    steps = [state["step"] for state in saved["state"].values()]
    assert [step.item() for step in steps] == [2, 2, 2]
    (copy,) = {step.untyped_storage().data_ptr() for step in steps}
    assert copy not in {state["step"].untyped_storage().data_ptr() for state in optimizer.state.values()}


def test_loading_copies(path):
    """Two optimizers that loaded one state dict do not share memory."""
    params = make_params()
    optimizer = make("AdamW", params)
    take_steps(optimizer, params, range(2))
    saved = optimizer.state_dict()
    twins = [copies(params), copies(params)]
    loaded = [make("AdamW", twin) for twin in twins]
    for one in loaded:
        one.load_state_dict(saved)
    before = snapshot(loaded[1], twins[1])
    take_steps(loaded[0], twins[0], range(2, 4))
    assert_same(snapshot(loaded[1], twins[1]), before)


def test_state_dict_hooks(path):
    calls = []
    params = make_params()
    optimizer = make("AdamW", params)
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("saving"))
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, saved: {k: v for k, v in saved.items() if k != "extra"})
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    take_steps(optimizer, params, [0])
    saved = optimizer.state_dict()
    assert saved["extra"] == 1
    optimizer.load_state_dict(saved)
    assert calls == ["saving", "loaded"]


def test_named_parameters_keep_their_names(path):
    named = list(zip(("embedding", "bias", "scale"), make_params(), strict=True))
    optimizer = make("AdamW", named)
    take_steps(optimizer, [param for _, param in named], [0])
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"] == ["embedding", "bias", "scale"]
    make("AdamW", named).load_state_dict(saved)
    del saved["state"][1]["exp_avg"]
    with pytest.raises(ValueError, match=r"'bias' lacks slot 'exp_avg'"):
        make("AdamW", named).load_state_dict(saved)


def test_parameters_that_never_had_a_gradient_have_no_state(path):
    params = make_params()
    optimizer = make("AdamW", params)
    set_grads(params[:1], 0)
    optimizer.step()
    saved = optimizer.state_dict()
    twin = copies(params)
    fresh = make("AdamW", twin)
    fresh.load_state_dict(saved)
    for run, own in ((optimizer, params), (fresh, twin)):
        take_steps(run, own, range(1, 3))
    assert_same(snapshot(fresh, twin), snapshot(optimizer, params))
    assert [fresh.state[param]["step"].item() for param in twin] == [3, 2, 2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_bytes_count_what_lies_on_the_device(variant, path):
    params = make_params()
    optimizer = make(variant, params)
    assert optim.state_bytes(optimizer) == 0
    take_steps(optimizer, params, [0])
    slots = [value for state in optimizer.state.values() for value in state.values()]
    assert optim.state_bytes(optimizer) == sum(4 * value.numel() for value in slots if value.ndim)
