"""Nothing that the registry or a rule file offers is left out of the kernel tests."""

from __future__ import annotations

import pytest
from kernel_trials import STORAGES, expected_launches, specs_of
from variants import ELEMENTWISE, MATRIX, named

from rlx_gpu.kernels.codecs import CODECS
from rlx_gpu.kernels.spec import FactoredSpec, MatrixSpec, RuleSpec
from rlx_gpu.table import TABLE

ADAFACTOR = {
    "factored_sums_kernel": 1,
    "factored_moments_kernel": 1,
    "factored_step_kernel": 2,
    "fused_step_kernel": 2,  # for what is not a matrix
    "finish_sums_kernel": 3,
}
NAMES = [name for name in TABLE if name not in MATRIX]
LAUNCHES = {  # a step's kernel launches, however many tensors it steps, but for those that compute rows
    "AdamW": {"fused_step_kernel": 1},
    "LAMB": {"fused_step_kernel": 2, "finish_sums_kernel": 1},
    "LAMB(bias_correction=False)": {"fused_step_kernel": 2, "finish_sums_kernel": 1},
    "MARS": {"fused_step_kernel": 2, "finish_sums_kernel": 1},
    "Adafactor": ADAFACTOR,
    "Adafactor(lr=None)": ADAFACTOR,
}


@pytest.mark.parametrize("name", NAMES)
def test_variants_turn_every_switch_both_ways(name):
    resolved = [TABLE[name].resolve(variant.hyper) for variant in ELEMENTWISE if variant.algorithm.name == name]
    assert resolved
    for hyper in TABLE[name].hyperparameters:
        values = [given[hyper.name] for given in resolved]
        if hyper.kind == "bool":
            assert set(values) == {True, False}, hyper.name
        if hyper.optional:
            assert None in values, hyper.name
            assert any(value is not None for value in values), hyper.name
    assert all(given["weight_decay"] > 0 for given in resolved)


def test_variants_are_distinct():
    ids = [str(variant) for variant in ELEMENTWISE]
    assert len(set(ids)) == len(ids)
    hypers = [(variant.algorithm.name, repr(variant.algorithm.resolve(variant.hyper))) for variant in ELEMENTWISE]
    assert len(set(hypers)) == len(hypers)


@pytest.mark.parametrize("name", NAMES)
def test_variants_run_every_rule(name):
    run = {spec.name for variant in ELEMENTWISE if variant.algorithm.name == name for spec in specs_of(variant, {1, 2})}
    if hasattr(TABLE[name].rules, "HESSIAN"):
        run.add(TABLE[name].rules.HESSIAN.name)  # the trials update the Hessian
    assert run == {spec.name for spec in TABLE[name].rules.SPECS}


def test_rules_are_listed_and_named_once():
    names = [spec.name for algorithm in TABLE.values() for spec in algorithm.rules.SPECS]
    assert len(set(names)) == len(names)
    for algorithm in TABLE.values():
        assert all(isinstance(spec, (RuleSpec, FactoredSpec, MatrixSpec)) for spec in algorithm.rules.SPECS)
        assert hasattr(algorithm.rules, "select") or algorithm.select({}, 1) is algorithm.rules.SPECS[0]


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("variant", ELEMENTWISE, ids=str)
def test_rules_have_the_slots_of_the_reference(variant, ndim):
    spec = variant.spec(ndim)
    hyper = variant.algorithm.resolve(variant.hyper)
    state = variant.algorithm.reference.init_state((2, 3, 4)[:ndim], **hyper)
    scalars = set(getattr(variant.algorithm.reference, "SCALAR_SLOTS", ()))
    assert set(spec.slots) == state.keys() - scalars
    assert set(spec.counters) == state.keys() & scalars


@pytest.mark.parametrize("id", LAUNCHES)
def test_a_step_takes_a_fixed_number_of_launches(id):
    """Parity tests hold every step against `expected_launches`; this holds that against numbers."""
    specs = specs_of(named(id), {1, 2, 3})
    names = [name for name, _ in expected_launches(specs)]
    counts = {name: names.count(name) for name in names}
    assert counts.pop("rows_kernel") == len(specs)
    assert counts == LAUNCHES[id]


def test_trials_use_every_codec():
    """The stochastic one has tests of its own, as has float64, which is the host's alone."""
    used = {getattr(storage, stream) for storage in STORAGES for stream in ("param", "grad", "state")}
    assert used | {"bfloat16_stochastic", "float64"} == set(CODECS)
