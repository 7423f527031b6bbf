"""The rows of scalars: to the bit what a host computes, whenever they are computed, and nothing where a step is not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from host_rows import HOST_ROWS, host_row, own_row
from numpy.testing import assert_array_equal

from rlx_gpu.engine.batch import Entry, Settings
from rlx_gpu.engine.buckets import BucketMember
from rlx_gpu.engine.inputs import SKIP, StepInputs
from rlx_gpu.engine.rows import RowLaunch
from rlx_gpu.engine.state import STEP, Storage, read_scalars
from rlx_gpu.kernels.rules import sophia
from rlx_gpu.kernels.spec import KEY, ROW_WIDTH
from rlx_gpu.parity.variants import variants
from rlx_gpu.reference.hyper import scaled
from rlx_gpu.table import TABLE

CPU = torch.device("cpu")
COUNTS = np.unique(np.geomspace(1, 1e7, 1264).round()).astype(np.int64).tolist()
SOME = COUNTS[::50]
UNTOUCHED = 77.0
ABSENT = object()
# Values at which powers, differences and branches are at their worst; a rule takes those that it has.
NOTABLE = (
    {},
    {"betas": (0.0, 0.0), "momentum": 0.0},
    {"betas": (0.9999, 0.9999), "momentum": 0.9999},
    {"betas": (0.95, 0.99), "momentum": 0.99, "dampening": 0.1},
    {"betas": (0.0, 0.9999), "dampening": 1.0},
    {"momentum_decay": 4e-3},
    {"momentum_decay": 0.0},
    {"beta2_decay": 0.0},
    {"beta2_decay": -1.0},
    {"beta2_decay": -0.5},
    {"lr": None},
    {"bias_correction": False},
    {"fallback_lr_scale": 0.3},
    {"gamma": 0.025},
    {"nus": (0.7, 1.0)},
)


class Rows:
    """The rows of as many tensors as there are step counts.

    Args:
        spec: the rule.
        hyper: resolved; or several, one for each tensor, which then has a group of its own.
        steps: of each tensor, before the launch.
        counters: initial numbers of each, by slot.
        scale: lr_scale.
        storage, lr, advance: as the settings' and the launch's.
    """

    def __init__(self, spec, hyper, steps, counters=None, *, scale=1.0, storage=None, lr=None, advance=True):
        self.spec, count = spec, len(steps)
        self.inputs = StepInputs(CPU, count)
        self.inputs.grads.fill_(1)
        self.inputs.rows.fill_(UNTOUCHED)
        self.states = [{STEP: torch.tensor(float(step))} for step in steps]
        for slot, values in (counters or {}).items():
            for state, value in zip(self.states, values, strict=True):
                state[slot] = torch.tensor(value, dtype=torch.float64)
        hypers = hyper if isinstance(hyper, list) else [hyper]
        groups = range(count) if len(hypers) > 1 else [0] * count
        self.settings = [Settings(one, storage or Storage(), lr) for one in hypers]
        entries = [Entry(str(i), torch.empty(0), group=group, scale=scale) for i, group in enumerate(groups)]
        own = [
            BucketMember(i, i, entry, state, self.settings[entry.group])
            for i, (entry, state) in enumerate(zip(entries, self.states, strict=True))
        ]
        self.rows = RowLaunch(spec, self.inputs, own, advance=advance)

    def launch(self):
        """Computes the rows: float32 [tensors, numbers]."""
        self.rows.send(self.settings)
        self.rows.launch()
        return self.inputs.rows[:, : len(self.spec.row.names)].numpy().copy()

    def numbers(self, slot=STEP):
        """A slot of one number, of every tensor."""
        return read_scalars([state[slot] for state in self.states])


def counters_of(spec, count):
    """Numbers in (0, 1), as a product of momenta is, a different one for each tensor."""
    return {slot: (0.99 * 0.999 ** np.arange(count)).tolist() for slot in spec.counters}


def expected(spec, hyper, steps, counters):
    """The host's rows, and the counters after."""
    own = [{slot: values[i] for slot, values in counters.items()} for i in range(len(steps))]
    rows = [host_row(spec.row, hyper, step, one) for step, one in zip(steps, own, strict=True)]
    return np.stack(rows), {slot: [one[slot] for one in own] for slot in counters}


def fits(value, default):
    """Whether a hyperparameter with this default may have the value, which may be of several numbers."""
    several = [len(one) if isinstance(one, tuple) else 1 for one in (value, default)]
    return default is not ABSENT and several[0] == several[1]


def cases():
    """Every row with the hyperparameters of all variants that have it and those of note, each once."""
    seen = set()
    for algorithm in TABLE.values():
        defaults = {hyper.name: hyper.default for hyper in algorithm.hyperparameters}
        tried = [{"lr": 3e-4}, {"lr": 0.05, "weight_decay": 0.1}, *(variant.hyper for variant in variants(algorithm))]
        for note in NOTABLE:
            own = {name: value for name, value in note.items() if fits(value, defaults.get(name, ABSENT))}
            if own and not (own.get("lr", 0.0) is None and algorithm.name != "Adafactor"):
                tried.append({"lr": 3e-4, "weight_decay": 0.1, **own})
        for spec in algorithm.rules.SPECS:
            for given in tried:
                hyper = algorithm.resolve(given)
                if spec.row.scalars is None or any(hyper[name] is None for name in spec.row.inputs):
                    continue
                key = spec.row, *spec.row.hypers(hyper)
                if key not in seen:
                    seen.add(key)
                    label = ",".join(f"{name}={value}" for name, value in given.items())
                    yield pytest.param(algorithm, spec, hyper, id=f"{spec.name}[{label}]")


CASES = list(cases())
PLAIN = list({case.values[1].row: case for case in reversed(CASES)}.values())[::-1]


def test_every_rule_is_tried():
    rows = {spec.row for algorithm in TABLE.values() for spec in algorithm.rules.SPECS if spec.row.scalars}
    assert {case.values[1].row for case in CASES} == rows >= HOST_ROWS.keys()
    assert len(COUNTS) == 1000


@pytest.mark.parametrize(("algorithm", "spec", "hyper"), PLAIN)
def test_a_row_that_is_written_out_is_also_what_its_function_says(algorithm, spec, hyper):
    """So may be trusted those of a new rule, which nobody has written out."""
    for step in SOME:
        (first, second), resolved = ({slot: 0.9 for slot in spec.counters} for _ in range(2)), scaled(hyper, 1.0)
        found = np.array(own_row(spec.row, resolved, step, first), dtype=np.float64)
        np.testing.assert_allclose(found, host_row(spec.row, resolved, step, second), rtol=1e-6)
        assert first == pytest.approx(second, rel=1e-12)


def assert_same_rows(found, wanted, names, steps):
    """Equal to the bit; names the numbers and steps that differ."""
    different = np.argwhere(found.view(np.int32) != wanted.view(np.int32))
    listed = [f"{names[j]} at step {steps[i]}: {found[i, j]!r}, not {wanted[i, j]!r}" for i, j in different[:8]]
    assert not listed, f"{len(different)} differ; {listed}"


@pytest.mark.parametrize(("algorithm", "spec", "hyper"), CASES)
def test_rows_are_the_hosts_to_the_bit(algorithm, spec, hyper):
    """At a thousand step counts, in one launch."""
    counters = counters_of(spec, len(COUNTS))
    wanted, after = expected(spec, scaled(hyper, 1.0), COUNTS, counters)
    advance = spec is not sophia.HESSIAN
    rows = Rows(spec, hyper, [step - advance for step in COUNTS], counters, advance=advance)
    assert_same_rows(rows.launch(), wanted, spec.row.names, COUNTS)
    assert_array_equal(rows.numbers(), COUNTS)
    for slot, values in after.items():
        np.testing.assert_allclose(rows.numbers(slot), values, rtol=4e-16)


@pytest.mark.parametrize(("algorithm", "spec", "hyper"), PLAIN)
def test_lr_scale_and_a_learning_rate_on_the_device(algorithm, spec, hyper):
    lr = torch.tensor(0.0123)
    for scale in (1.0, 0.5, 0.3):
        for held in (None, lr):
            own = scaled(hyper if held is None else {**hyper, "lr": float(held)}, scale)
            counters = counters_of(spec, len(SOME))
            wanted, _ = expected(spec, own, SOME, counters)
            rows = Rows(spec, hyper, [step - 1 for step in SOME], counters, scale=scale, lr=held)
            assert_same_rows(rows.launch(), wanted, spec.row.names, SOME)


def test_lr_scale_without_a_learning_rate():
    algorithm = TABLE["Adafactor"]
    hyper = algorithm.resolve({"lr": None})
    for spec, scale in itertools.product(algorithm.rules.SPECS, (0.5, 0.3)):
        wanted, _ = expected(spec, scaled(hyper, scale), SOME, {})
        found = Rows(spec, hyper, [step - 1 for step in SOME], scale=scale).launch()
        assert_same_rows(found, wanted, spec.row.names, SOME)


def test_a_learning_rate_that_the_device_changes_between_steps():
    algorithm, lr = TABLE["AdamW"], torch.tensor([0.1])
    (spec, *_), hyper = algorithm.rules.SPECS, algorithm.resolve({"lr": 0.0})
    rows = Rows(spec, hyper, [0], lr=lr)
    rows.launch()
    lr.fill_(0.25)
    assert rows.launch()[0, 0] == 0.25


def test_the_product_of_momenta_over_consecutive_steps():
    decays, algorithm = (4e-3, 0.0, 0.9), TABLE["NAdamW"]
    hypers = [algorithm.resolve({"lr": 1e-3, "momentum_decay": decay}) for decay in decays]
    spec, hosts = algorithm.select(hypers[0], 1), [{"mu_product": 1.0} for _ in decays]
    rows = Rows(spec, hypers, [0] * len(decays), {"mu_product": [1.0] * len(decays)})
    for step in range(1, 301):
        wanted = [host_row(spec.row, hyper, step, host) for hyper, host in zip(hypers, hosts, strict=True)]
        assert_same_rows(rows.launch(), np.stack(wanted), spec.row.names, [step] * len(decays))
    np.testing.assert_allclose(rows.numbers("mu_product"), [host["mu_product"] for host in hosts], rtol=1e-13)


@pytest.mark.parametrize(("algorithm", "spec", "hyper"), PLAIN)
def test_a_skipped_step_writes_nothing(algorithm, spec, hyper):
    rows = Rows(spec, hyper, [4, 0], counters_of(spec, 2))
    before = {slot: rows.numbers(slot) for slot in (STEP, *spec.counters)}
    rows.inputs.words[SKIP] = 1.0
    rows.launch()
    assert (rows.inputs.rows == UNTOUCHED).all()
    for slot, values in before.items():
        assert_array_equal(rows.numbers(slot), values)


@pytest.mark.parametrize(("algorithm", "spec", "hyper"), PLAIN)
def test_without_a_gradient_nothing_is_written(algorithm, spec, hyper):
    """For that member alone, wherever it stands in its block."""
    steps, count = [4, 0, 9, 2], 4
    counters = counters_of(spec, count)
    rows = Rows(spec, hyper, steps, counters)
    rows.inputs.grads[1] = rows.inputs.grads[3] = 0
    found = rows.launch()
    wanted, after = expected(spec, scaled(hyper, 1.0), [step + 1 for step in steps], counters)
    assert (rows.inputs.rows[[1, 3]] == UNTOUCHED).all()
    assert_same_rows(found[[0, 2]], wanted[[0, 2]], spec.row.names, [5, 10])
    assert_array_equal(rows.numbers(), [5, 0, 10, 2])
    for slot, values in after.items():
        found = rows.numbers(slot)
        assert_array_equal(found[[1, 3]], np.array(counters[slot])[[1, 3]])
        np.testing.assert_allclose(found[[0, 2]], np.array(values)[[0, 2]], rtol=4e-16)


@pytest.mark.parametrize(("algorithm", "spec", "hyper"), PLAIN)
def test_without_advance_nothing_is_counted(algorithm, spec, hyper):
    counters = counters_of(spec, 3)
    rows = Rows(spec, hyper, [4, 1, 9], counters, advance=False)
    for _ in range(2):
        found = rows.launch()
    wanted, _ = expected(spec, scaled(hyper, 1.0), [4, 1, 9], counters)
    assert_same_rows(found, wanted, spec.row.names, [4, 1, 9])
    assert_array_equal(rows.numbers(), [4, 1, 9])
    for slot, values in counters.items():
        assert_array_equal(rows.numbers(slot), values)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 0x7FF8_0000_DEAD_BEEF])
def test_the_key_of_random_bits(seed):
    """The whole seed, bits of NaN among them, and the step that is being made."""
    hyper = TABLE["AdamW"].resolve({"lr": 1e-3})
    rows = Rows(TABLE["AdamW"].rules.SPECS[0], hyper, [0, 9_999_999], storage=Storage(seed=seed))
    rows.launch()
    key = rows.inputs.rows[:, ROW_WIDTH - len(KEY) :].numpy().view(np.uint32).astype(np.int64)
    words = dict(zip(KEY, key.T, strict=True))
    assert_array_equal(words["step"], [1, 10_000_000])
    assert_array_equal(words["seed_low"], [seed & 0xFFFFFFFF] * 2)
    assert_array_equal(words["seed_high"], [seed >> 32] * 2)


def test_more_tensors_than_a_block_and_groups_of_their_own():
    """Members in any order, each with its own group's numbers and at its own place."""
    algorithm, count = TABLE["SGD"], 300
    (spec, *_) = algorithm.rules.SPECS
    order = np.random.default_rng(0).permutation(count)
    inputs = StepInputs(CPU, count)
    inputs.grads.fill_(1)
    settings = [Settings(algorithm.resolve({"lr": 0.1 * (group + 1)}), Storage()) for group in range(7)]
    entries = [Entry(str(i), torch.empty(0), group=i % 3 * 2) for i in range(count)]  # groups 0, 2 and 4 alone
    states = [{STEP: torch.tensor(0.0)} for _ in entries]
    own = [
        BucketMember(i, place, entry, state, settings[entry.group])
        for i, (place, entry, state) in enumerate(zip(order.tolist(), entries, states, strict=True))
    ]
    launch = RowLaunch(spec, inputs, own, advance=True)
    launch.send(settings)
    launch.launch()
    wanted = np.array([settings[entry.group].hyper["lr"] for entry in entries], dtype=np.float32)
    assert_array_equal(inputs.rows[:, 0].numpy()[order], wanted)
