"""What must not happen again at every step: compiling, planning, launching once more for one more tensor."""

from __future__ import annotations

import pytest
import torch
from kernel_trials import STORAGES, expected_launches, recorded_launches, specs_of
from variants import ELEMENTWISE, named

from rlx_gpu.engine import launch
from rlx_gpu.kernels import elementwise, factored
from rlx_gpu.kernels.codecs import codecs_of

CHANGES = {  # hyperparameters that only change numbers
    "lr": 0.02,
    "weight_decay": 0.3,
    "betas": (0.8, 0.9),
    "eps": 1e-5,
    "momentum": 0.7,
    "gamma": 0.5,
    "rho": 0.2,
    "nus": (0.5, 0.9),
    "beta2_decay": -0.6,
    "clip_threshold": 2.0,
}


def params_of(count, size=6, dtype=torch.float32):
    return {f"p{i}": torch.ones((2, size // 2) if i % 2 else (size,), dtype=dtype) for i in range(count)}


def step(optimizer, params, grads=None):
    grads = grads or {name: torch.ones_like(param) for name, param in params.items()}
    optimizer.step_batch([(name, tuple(param.shape), param, grads[name]) for name, param in params.items()])
    optimizer.end_iteration()


def compiled_for(optimizer, params, steps=1):
    """What a compiled kernel depends on, of every launch of the last step: constants, types, specialised integers."""
    seen = []
    real = launch.launch

    def spy(kernel, programs, *arguments, **constants):
        kinds = tuple((a.dtype, a.data_ptr() % 16 == 0) if isinstance(a, torch.Tensor) else type(a) for a in arguments)
        seen.append((kernel.__name__, kinds, tuple(sorted((key, repr(value)) for key, value in constants.items()))))
        real(kernel, programs, *arguments, **constants)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch", spy)
        for _ in range(steps):
            seen.clear()
            step(optimizer, params)
    return list(seen)


@pytest.mark.parametrize("chosen", ELEMENTWISE, ids=str)
def test_nothing_recompiles(chosen):
    base = compiled_for(chosen.make(), params_of(2))
    assert base
    assert compiled_for(chosen.make(), params_of(2), steps=2) == base  # step
    assert compiled_for(chosen.make(), params_of(5)) == base  # number of tensors
    assert compiled_for(chosen.make(), params_of(2, size=1500)) == base  # shapes
    assert compiled_for(chosen.make(seed=99, lr_scale={"p0": 0.5}), params_of(2)) == base
    changes = {key: value for key, value in CHANGES.items() if chosen.hyper.get(key) is not None}
    if "betas" in changes:
        changes["betas"] = tuple(beta * 0.9 for beta in chosen.hyper["betas"])  # however many there are
    assert changes
    assert compiled_for(chosen.make(**changes), params_of(2)) == base


@pytest.mark.parametrize("chosen", ELEMENTWISE, ids=str)
def test_constants_tell_rules_and_storage_apart(chosen):
    """And nothing else: the names of the compile-time arguments are those of the design."""
    made = compiled_for(chosen.make(), params_of(2))
    allowed = {
        "RULE",
        "RULES",
        "STREAMS",
        "TABLE_WIDTH",
        "SCALARS",
        "SUMS_IN",
        "SUMS_OUT",
        "BLOCK",
        "TAIL_BLOCK",
        "SOURCE",
    }
    allowed |= {"TILE_ROWS", "TILE_COLS", "PART_ROWS", "UPDATE", "SPLIT", "SUMS"}
    allowed |= {"SCALARS_OF", "HYPERS", "COUNTERS", "ADVANCE"}
    assert {key for _, _, constants in made for key, _ in constants} <= allowed
    half = compiled_for(chosen.make(), params_of(2, dtype=torch.bfloat16))
    assert [kernel for kernel, _, _ in half] == [kernel for kernel, _, _ in made]
    assert [constants for _, _, constants in half] != [constants for _, _, constants in made]


@pytest.mark.parametrize("chosen", ELEMENTWISE, ids=str)
def test_sources_differ_between_rules(chosen):
    """Triton's cache on disk tells functions inside tuples apart by this hash alone."""
    sources = {}
    for other in ELEMENTWISE:
        for spec in specs_of(other, {1, 2}):
            passes = getattr(spec, "passes", [spec])
            for index in range(len(passes)):
                sources[passes[index].rule if hasattr(spec, "passes") else spec] = source(spec, index, "float32")
    assert len(set(sources.values())) == len(sources)
    spec = chosen.spec(1)
    assert source(spec, 0, "float32") != source(spec, 0, "bfloat16")


def source(spec, index, name):
    codecs = codecs_of((name,) * (2 + len(spec.slots)))
    if hasattr(spec, "passes"):
        return elementwise.constants(spec, index, codecs)["SOURCE"]
    return factored.constants(spec, codecs)["sums"]["SOURCE"]


@pytest.mark.parametrize("options", [{}, {"skip_nonfinite": True}], ids=["plain", "guarded"])
@pytest.mark.parametrize("chosen", ELEMENTWISE, ids=str)
def test_a_plan_is_made_once(chosen, options):
    """Another lr, other gradients and the passing of steps keep the plan; other parameters do not."""
    optimizer, params = chosen.make(**options), params_of(2)
    step(optimizer, params)
    (plan,) = optimizer._engine.steps
    if optimizer.hyper["lr"] is not None:
        optimizer.set_lr(0.5)
    alive = [{name: torch.ones_like(param) for name, param in params.items()} for _ in range(3)]
    for grads in (*alive, alive[0]):
        step(optimizer, params, grads)
    assert list(optimizer._engine.steps) == [plan]
    moved = {name: param.clone() for name, param in params.items()}
    step(optimizer, moved)
    (other,) = optimizer._engine.steps
    assert other is not plan


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("chosen", ELEMENTWISE, ids=str)
def test_launches_do_not_depend_on_the_number_of_tensors(chosen, count):
    params = {f"p{i}{j}": torch.ones((3, 4)[:ndim]) for i in range(count) for j, ndim in enumerate((1, 2))}
    with recorded_launches() as made:
        step(chosen.make(), params)
    assert sorted(made, key=repr) == sorted(expected_launches(specs_of(chosen, {1, 2})), key=repr)


def test_a_guarded_step_launches_norm_and_words_besides():
    params = params_of(4)
    plain, guarded = (named("AdamW").make(skip_nonfinite=skip) for skip in (False, True))
    with recorded_launches() as made:
        step(plain, params)
        first = len(made)
        step(guarded, params)
    names = [name for name, _ in made[first:]]
    assert names == [
        "fused_step_kernel",  # squares of every tensor's blocks
        "finish_sums_kernel",  # of the blocks of each tensor
        "finish_sums_kernel",  # of all tensors
        "words_kernel",
        "rows_kernel",
        "fused_step_kernel",
    ]


def test_every_storage_of_a_batch_has_its_own_launch():
    dtypes = {storage.param for storage in STORAGES}
    params = {f"{dtype}{i}": torch.ones(5, dtype=getattr(torch, dtype)) for dtype in dtypes for i in range(3)}
    with recorded_launches() as made:
        step(named("AdamW").make(), params)
    assert len(made) == len(dtypes) + 1 == 4  # and one for the rows of all
