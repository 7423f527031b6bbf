"""Which variants parity iterates: what follows from the declarations, and what is refused of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlx_gpu.parity.cases import parse_shapes
from rlx_gpu.parity.storages import find_storages
from rlx_gpu.parity.trial import run_trial
from rlx_gpu.parity.variants import Variant, variants
from rlx_gpu.reference.hyper import UNSET, Hyper
from rlx_gpu.table import TABLE

CPU = torch.device("cpu")


def in_words(value: Any) -> str | None:
    """What a test's declaration says, for its id."""
    if not isinstance(value, Hyper):
        return None
    said = {field: getattr(value, field) for field in ("trial", "switch", "needs")}
    return ",".join(
        [
            f"{value.kind}={value.default}",
            *(f"{field}={one}" for field, one in said.items() if one not in (UNSET, None)),
        ]
    )


@pytest.mark.parametrize("algorithm", TABLE.values(), ids=lambda algorithm: algorithm.name)
def test_every_rule_runs(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlx_gpu.kernels import elementwise, factored

    ran = set()
    for driver in (elementwise, factored):

        def spy(spec: Any, *others: Any, constants: Any = driver.constants) -> Any:
            ran.add(spec.name)
            return constants(spec, *others)

        monkeypatch.setattr(driver, "constants", spy)
    (storage,) = find_storages(["float32"])
    for variant in variants(algorithm):
        assert not run_trial(variant, storage, parse_shapes("3,4x3,2x3x4"), 2, CPU).failures, variant.label
    assert {getattr(spec, "prepare", spec).name for spec in algorithm.rules.SPECS} <= ran


def test_switches_turn_and_exclude_each_other() -> None:
    labels = {name: [variant.label for variant in variants(TABLE[name])] for name in ("SGD", "NAdamW", "Adafactor")}
    assert labels["NAdamW"] == ["", "momentum_decay=0.9"] and labels["Adafactor"] == ["", "lr=None"]
    assert "momentum=0.9, nesterov=True" in labels["SGD"] and "nesterov=True" not in labels["SGD"]


@pytest.mark.parametrize("algorithm", TABLE.values(), ids=lambda algorithm: algorithm.name)
def test_decay_is_always_on(algorithm: Any) -> None:
    assert all(variant.hyper["weight_decay"] == 0.1 for variant in variants(algorithm))


@pytest.mark.parametrize(
    ("declared", "labels"),
    [
        (Hyper("warmup", 3, "[1, inf)", "steps"), [""]),
        (Hyper("warmup", 1000, "[1, inf)", "steps", trial=3), [""]),
        (Hyper("warmup", None, "[1, inf)", "steps", optional=True, switch=3), ["", "warmup=3"]),
        (Hyper("warmup", None, "[1, inf)", "steps", optional=True, trial=3), ["", "warmup=None"]),
        (Hyper("warmup", 0.0, trial=3.0), [""]),
        (Hyper("warmup", 0.0, switch=3.0), ["", "warmup=3.0"]),
        (Hyper("warmup", 0.0, switch=3.0, needs="eps"), [""]),
        (Hyper("warmup", 1.0, optional=True), ["", "warmup=None"]),
        (Hyper("warmup", False, kind="bool"), ["", "warmup=True"]),
        (Hyper("warmup", False, kind="bool", trial=True), [""]),
    ],
    ids=in_words,
)
def test_values_in_trials_are_declared(declared: Hyper, labels: list[str], monkeypatch: Any) -> None:
    reference = TABLE["QHAdamW"].reference
    monkeypatch.setattr(reference, "HYPERPARAMETERS", (*reference.HYPERPARAMETERS, declared))
    found = list(variants(TABLE["QHAdamW"]))
    assert [variant.label for variant in found] == labels
    if declared.trial is not UNSET:
        assert found[0].hyper["warmup"] == declared.trial


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (Hyper("warmup", None, "[1, inf)", "steps", optional=True), "is None by default, .* trial=.*switch="),
        (Hyper("warmup", 0.0), "is 0.0 by default, so that no trial would show whether it works"),
        (Hyper("warmup", (0.9, 0.0), kind="floats"), r"is \(0.9, 0.0\) by default"),
        (Hyper("warmup"), "is required"),
        (Hyper("warmup", 5, "[1, inf)", "steps", trial=0.9), r"must be a whole number in \[1, inf\), got 0.9"),
        (Hyper("warmup", 0.0, "[0, 1)", switch=1.0), r"must be in \[0, 1\), got 1.0"),
        (Hyper("warmup", 0.0, switch=1.0, needs="momentum"), "needs 'momentum'; there are lr, betas"),
    ],
    ids=in_words,
)
def test_a_hyperparameter_that_trials_would_not_show_is_refused(
    declared: Hyper, message: str, monkeypatch: Any
) -> None:
    reference = TABLE["QHAdamW"].reference
    monkeypatch.setattr(reference, "HYPERPARAMETERS", (*reference.HYPERPARAMETERS, declared))
    with pytest.raises(ValueError, match=f"^QHAdamW: (in trials, )?warmup {message}"):
        list(variants(TABLE["QHAdamW"]))


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("algorithm", TABLE.values(), ids=lambda algorithm: algorithm.name)
def test_rules_keep_the_slots_of_the_reference(algorithm: Any, shape: tuple[int, ...]) -> None:
    for variant in variants(algorithm):
        variant.check_slots(shape)


def test_other_slots_are_named_before_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    (storage,) = find_storages(["float32"])
    monkeypatch.setattr(TABLE["QHAdamW"].reference, "init_state", lambda shape, **_: {"exp_avg": None, "v": None})
    with pytest.raises(
        ValueError,
        match=r"^QHAdamW, shape \(3,\): slots differ; rule 'qhadamw' alone has exp_avg_sq, the reference alone has v$",
    ):
        run_trial(Variant(TABLE["QHAdamW"], {}), storage, parse_shapes("3"), 1, CPU)


def test_slots_that_one_side_loses_on_the_way_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, (storage,) = TABLE["QHAdamW"].reference, find_storages(["float32"])

    def renamed(*arguments: Any, right: Any = reference.update, **hyper: Any) -> Any:
        param, state = right(*arguments, **hyper)
        return param, {"exp_avg": state["exp_avg"], "v": state["exp_avg_sq"]}

    monkeypatch.setattr(reference, "update", renamed)
    outcome = run_trial(Variant(TABLE["QHAdamW"], {}), storage, parse_shapes("3"), 1, CPU)
    assert outcome.failures == ["step 1: the kernels' side alone has exp_avg_sq/3, the reference alone has v/3"]
