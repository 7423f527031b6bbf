"""The gate before a measurement: right kernels pass, wrong ones are refused and not timed."""

from __future__ import annotations

from typing import Any

import pytest

from rlx_gpu.bench import elementwise, gate
from rlx_gpu.kernels.formats import STORAGES
from rlx_gpu.table import TABLE


@pytest.fixture
def half_the_decay(monkeypatch):
    """References that decay weights by half: for the comparison, kernels that do."""

    def install(optimizer: str) -> None:
        module = TABLE[optimizer].reference
        right = module.update

        def wrong(*given: Any, weight_decay: float, **hyper: Any) -> Any:
            return right(*given, weight_decay=weight_decay / 2, **hyper)

        monkeypatch.setattr(module, "update", wrong)

    return install


@pytest.mark.parametrize("storage", STORAGES)
def test_right_kernels_pass(storage: str) -> None:
    gate.check("SGD", storage, "cpu")


@pytest.mark.parametrize("optimizer", ["Muon", "SOAP", "KronPSGD"])
def test_right_matrix_kernels_pass(library_products, optimizer: str) -> None:
    gate.check(optimizer, "float32", "cpu")


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "Muon", "KronPSGD"])
@pytest.mark.parametrize("storage", ["float32", "bfloat16_stochastic"])
def test_a_wrong_kernel_is_refused(library_products, half_the_decay, optimizer: str, storage: str) -> None:
    half_the_decay(optimizer)
    with pytest.raises(gate.ParityError, match=rf"{optimizer} in {storage} on cpu: step \d+: param of .* is off by"):
        gate.check(optimizer, storage, "cpu")


def test_a_wrong_slot_is_refused_where_the_parameter_is_right(monkeypatch) -> None:
    reference = TABLE["Lion"].reference
    right = reference.update

    def wrong(*given: Any, **hyper: Any) -> Any:
        param, state = right(*given, **hyper)
        return param, {slot: value * 1.001 for slot, value in state.items()}

    monkeypatch.setattr(reference, "update", wrong)
    with pytest.raises(gate.ParityError, match="Lion in float32 on cpu: step 1: exp_avg of"):
        gate.check("Lion", "float32", "cpu")


def test_the_rule_that_is_timed_is_the_one_that_is_checked(monkeypatch) -> None:
    """SGD is timed with momentum; here its rule with momentum is broken, and no other."""
    rules = TABLE["SGD"].rules
    monkeypatch.setattr(rules, "select", lambda hyper, ndim: rules.NESTEROV if hyper["momentum"] else rules.PLAIN)
    with pytest.raises(gate.ParityError, match="SGD in float32 on cpu"):
        gate.check("SGD", "float32", "cpu")


@pytest.mark.parametrize("error", [0.06, float("nan")])
def test_muon_as_it_iterates_when_timed_is_refused(library_products, monkeypatch, error: float) -> None:
    monkeypatch.setattr(gate, "iteration_error", lambda device: error)
    with pytest.raises(gate.ParityError, match="Muon in float32 on cpu: a step with its own ns_dtype is off by"):
        gate.check("Muon", "float32", "cpu")


def test_muons_iteration_in_bfloat16_is_told_from_an_exact_one(library_products) -> None:
    assert 1e-3 < gate.iteration_error("cpu") < gate.ITERATION_ERROR


def test_without_the_driver_of_the_device_nothing_passes(monkeypatch) -> None:
    """What another driver has computed says nothing of the one that is to be timed."""
    from rlx_gpu.parity import trial

    monkeypatch.setattr(trial, "on_host", lambda device: True)
    with pytest.raises(gate.ParityError, match="the driver of these tensors did not run"):
        gate.check("Lion", "float32", "cpu")


def test_what_is_wrong_is_not_timed(half_the_decay, monkeypatch) -> None:
    """The gate's words become the verdict, and without a right one there is no race."""
    half_the_decay("AdamW")
    on_cpu = gate.check
    monkeypatch.setattr(gate, "check", lambda optimizer, storage, device: on_cpu(optimizer, storage, "cpu"))
    monkeypatch.setattr(elementwise, "bytes_per_param", lambda *given: 28.0)
    verdict = elementwise.examine("AdamW", "float32", "sm_90")
    assert verdict.fault is not None and "AdamW in float32 on cpu" in verdict.fault
    effort = elementwise.Effort(rounds=1, repeats=3)
    assert elementwise.measure("vit", "AdamW", "float32", [], [], verdict, 1.0, effort) == ([], {})
