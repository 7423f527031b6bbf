"""`rlx-gpu parity`: what it says of right kernels, and that wrong ones do not get past it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from processes import user_environment
from typer.testing import CliRunner, Result

from rlx_gpu.cli import app
from rlx_gpu.kernels.formats import STORAGES
from rlx_gpu.parity.cases import DEFAULT_SHAPES, parse_shapes, places, tensor_of
from rlx_gpu.parity.devices import DEVICES
from rlx_gpu.parity.intervals import distance, nearest, stochastic
from rlx_gpu.parity.outcome import Error, Outcome
from rlx_gpu.parity.storages import find_storages
from rlx_gpu.parity.trial import run_trial
from rlx_gpu.parity.variants import Variant, find_algorithms, variants
from rlx_gpu.reference.formats import FORMATS, round_to, stochastic_bfloat16
from rlx_gpu.table import TABLE

CPU = torch.device("cpu")
FEW = parse_shapes("scalar,130,7x12:transposed,33:unaligned,0x3")


def parity(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["parity", *arguments])


def rows(result: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(result.stdout)["rows"]
    return found


class TestCommand:
    def test_json_has_every_variant_in_every_storage(self) -> None:
        result = parity("--optimizer", "nadamw", "--optimizer", "Adafactor", "--shapes", "5,3x4", "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["passed"] and list(report["devices"]) == ["interpreted", "cpu"] == list(DEVICES)[1:]
        assert report["devices"]["interpreted"].endswith("kernels interpreted") and report["shapes"] == ["5", "3x4"]
        assert re.search(r"rules compiled by Numba [\d.]+, \d+ threads$", report["devices"]["cpu"])
        assert report["steps"] == 3 and {"rlx-gpu", "torch", "triton", "NVIDIA driver"} <= set(report["versions"])
        chosen = [variant for algorithm in find_algorithms(["NAdamW", "Adafactor"]) for variant in variants(algorithm)]
        assert [(row["device"], row["optimizer"], row["variant"], row["dtype"]) for row in report["rows"]] == [
            (device, variant.algorithm.name, variant.label, dtype)
            for device in report["devices"]
            for variant in chosen
            for dtype in STORAGES
        ]
        for row in report["rows"]:
            assert row["passed"] and row["launches"] >= 3 and not row["failures"] and row["tolerances"]
            for slot, worst in row["worst"].items():
                assert worst["parameter"] in ("5", "3x4") and 0 <= worst["error"] <= worst["allowed"]
                assert worst["allowed"] == 0 if slot == "step" else 0 < worst["allowed"] < 1e-2
        slots = {slot for row in report["rows"] for slot in row["worst"]}
        assert slots == {"param", "step", "exp_avg", "exp_avg_sq", "mu_product", "variance", "row_var", "col_var"}

    def test_the_table_says_what_ran_and_what_is_allowed(self) -> None:
        result = parity("--optimizer", "lamb", "--dtype", "bfloat16", "--dtype", "float32", "--shapes", "9")
        assert result.exit_code == 0, result.output
        assert "8 of 8 agree with the reference." in result.stdout
        assert "kernels interpreted" in result.stdout and f"torch {torch.__version__}" in result.stdout
        assert "1e-06 of the largest magnitude: about fifteen float32 operations" in result.stdout
        assert "read back" in result.stdout and "bias_correction=False" in result.stdout

    def test_a_user_needs_no_environment_variable(self) -> None:
        command = ["--optimizer", "AdamW", "--dtype", "bfloat16", "--shapes", "9", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "rlx_gpu", "parity", *command],
            capture_output=True,
            text=True,
            env=user_environment(CUDA_VISIBLE_DEVICES=""),
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["passed"] and list(report["devices"]) == ["interpreted", "cpu"]
        assert "Warning" not in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--optimizer", "AdamX"], "there is no optimizer 'AdamX'; choose from SGD, "),
            (["--device", "tpu"], "there is no device 'tpu'; choose from cuda, interpreted, cpu"),
            (["--device", "cuda", "--device", "interpreted"], "either compiles kernels or interprets them"),
            (["--dtype", "int8"], "there is no dtype 'int8'; choose from float32, "),
            (["--shapes", "127;33"], "shape '127;33' must look like"),
            (["--shapes", ""], "shape '' must look like"),
            (["--shapes", "33x"], "shape '33x' must look like"),
            (["--shapes", "8:sideways"], "shape '8:sideways' must look like"),
            (["--shapes", "8:transposed"], "only a matrix can be transposed"),
            (["--shapes", "8,9,8"], "shapes must differ"),
            (["--steps", "0"], "steps"),
        ],
    )
    def test_bad_usage(self, arguments: list[str], message: str) -> None:
        result = parity(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr


class TestShapes:
    def test_names_sizes_and_layouts(self) -> None:
        cases = parse_shapes("scalar, 127,0x3,33x128:transposed,2x3x4:unaligned")
        assert [(case.name, case.shape, case.layout) for case in cases] == [
            ("scalar", (), "contiguous"),
            ("127", (127,), "contiguous"),
            ("0x3", (0, 3), "contiguous"),
            ("33x128:transposed", (33, 128), "transposed"),
            ("2x3x4:unaligned", (2, 3, 4), "unaligned"),
        ]

    @pytest.mark.parametrize("case", parse_shapes(DEFAULT_SHAPES), ids=lambda case: case.name)
    def test_tensors_lie_as_they_are_named(self, case: Any) -> None:
        values = np.arange(float(np.prod(case.shape))).reshape(case.shape)
        tensor = tensor_of(values, "float32", case.layout, CPU)
        np.testing.assert_array_equal(tensor.numpy(), values)
        assert tensor.is_contiguous() == (case.layout != "transposed")
        assert (tensor.data_ptr() % 16 != 0) == (case.layout == "unaligned")
        flat = tensor.as_strided((tensor.numel(),), (1,))
        np.testing.assert_array_equal(flat[torch.from_numpy(places(tensor))].numpy(), values)


class TestIntervals:
    @pytest.fixture
    def values(self) -> Any:
        rng = np.random.default_rng(5)
        powers = [*(sign * 2.0**e for e in (-140, -126, -24, -14, -1, 0, 3) for sign in (1, -1)), 0.0]
        return np.concatenate([rng.normal(size=400), rng.normal(size=100) * 1e-6, powers])

    @staticmethod
    def assert_inverse(interval: Any, found: Any, rounded: Any) -> None:
        """What lies just within the interval is rounded to the number found, what lies just beyond is not."""
        (low, high), magnitude = interval, np.abs(found)
        within, beyond = 1 - 1e-12, 1 + 1e-12
        np.testing.assert_array_equal(rounded(high * within), magnitude)
        assert (rounded(high * beyond) > magnitude).all()
        positive = low > 0
        np.testing.assert_array_equal(rounded(low * beyond)[positive], magnitude[positive])
        assert (rounded(low * within) < magnitude)[positive].all()

    @pytest.mark.parametrize("dtype", FORMATS)
    def test_nearest_is_the_inverse_of_rounding(self, dtype: str, values: Any) -> None:
        found = round_to(values, dtype)
        assert not distance(found, values, nearest(found, dtype)).any()
        self.assert_inverse(nearest(found, dtype), found, lambda x: round_to(x, dtype))

    def test_stochastic_is_the_inverse_of_stochastic_rounding(self, values: Any) -> None:
        index = np.arange(values.size) + 2**40
        found = stochastic_bfloat16(values, 7, 3, index)
        interval = stochastic(found, 7, 3, index)
        assert not distance(found, values, interval).any()
        self.assert_inverse(interval, found, lambda x: stochastic_bfloat16(x, 7, 3, index))
        assert (distance(found, values, stochastic(found, 8, 3, index)) > 0).mean() > 0.2  # bits of another seed

    def test_distance_beyond_the_interval(self) -> None:
        found = np.array([1.0, -1.0, 1.0, np.nan, 1.0, np.inf])
        wanted = np.array([1.5, -1.5, 0.5, 1.0, np.nan, 1.0])
        off = distance(found, wanted, nearest(found, "bfloat16"))
        np.testing.assert_allclose(off[:3], [0.5 - 2.0**-8, 0.5 - 2.0**-8, 0.5 - 2.0**-9])
        assert not (off[3:] <= 1e3).any()

    def test_nan_never_passes_and_is_the_worst(self) -> None:
        outcome = Outcome()
        for error in (Error("a", 1.0, 2.0), Error("b", float("nan"), 2.0), Error("c", 3.0, 2.0)):
            outcome.add(1, "param", error)
        assert outcome.worst["param"].parameter == "b" and len(outcome.failures) == 2


class TestWrongKernels:
    """A reference that computes something else is, for the comparison, a kernel that does."""

    @pytest.mark.parametrize("storage", find_storages(), ids=str)
    @pytest.mark.parametrize("algorithm", TABLE.values(), ids=lambda algorithm: algorithm.name)
    def test_half_the_weight_decay(self, algorithm: Any, storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        variant = Variant(algorithm, {})
        assert not run_trial(variant, storage, FEW, 2, CPU).failures
        right = algorithm.reference.update

        def wrong(*arguments: Any, weight_decay: float, **hyper: Any) -> Any:
            return right(*arguments, weight_decay=weight_decay / 2, **hyper)

        monkeypatch.setattr(algorithm.reference, "update", wrong)
        outcome = run_trial(variant, storage, FEW, 2, CPU)
        assert not outcome.worst["param"].passed
        assert {"130", "7x12:transposed", "33:unaligned"} <= {
            text.split(" of ")[1].split()[0] for text in outcome.failures
        }

    @pytest.mark.parametrize("slot", ["exp_avg", "exp_avg_sq", "last_grad"])
    def test_one_element_of_one_slot(self, slot: str, monkeypatch: pytest.MonkeyPatch) -> None:
        reference = TABLE["MARS"].reference
        right = reference.update

        def wrong(*arguments: Any, **hyper: Any) -> Any:
            param, state = right(*arguments, **hyper)
            if state[slot].size == 130:
                state[slot][77] += 1e-5 * np.abs(state[slot]).max()
            return param, state

        monkeypatch.setattr(reference, "update", wrong)
        (storage,) = find_storages(["float32"])
        outcome = run_trial(Variant(TABLE["MARS"], {}), storage, FEW, 1, CPU)
        assert len(outcome.failures) == 1 and f"{slot} of 130 is off by 1.0e-05" in outcome.failures[0]

    def test_another_rule_ends_with_status_1(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TABLE["AdamW"].rules, "select", TABLE["Adam"].rules.select)
        result = parity("--optimizer", "adamw", "--dtype", "float32", "--shapes", "127")
        assert result.exit_code == 1
        assert "FAIL cpu AdamW  float32: step 1: param of 127 is off by" in result.stdout
        assert "0 of 4 agree with the reference." in result.stdout

    def test_nan_is_null_in_json(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = TABLE["Lion"].rules.SPECS[0]
        row = dataclasses.replace(plain.row, inputs=("nan", "betas"))  # in the place of weight_decay
        monkeypatch.setattr(TABLE["Lion"].rules, "SPECS", (dataclasses.replace(plain, row=row),))
        hypers = type(row).hypers
        monkeypatch.setattr(type(row), "hypers", lambda self, hyper: hypers(self, {**hyper, "nan": float("nan")}))
        result = parity("--optimizer", "lion", "--shapes", "5", "--dtype", "float32", "--json")
        assert result.exit_code == 1
        row, _ = rows(result)
        assert row["worst"]["param"]["error"] is None and not row["passed"] and row["failures"]

    @pytest.mark.parametrize("device", ["interpreted", "cpu"])
    def test_another_driver_is_told(self, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from rlx_gpu.parity import trial

        monkeypatch.setattr(trial, "on_host", lambda one: device == "interpreted")
        result = parity("--optimizer", "lion", "--shapes", "5", "--dtype", "float32", "--device", device, "--json")
        assert result.exit_code == 1
        (row,) = rows(result)
        assert row["launches"] == 0 and row["failures"][0] == "step 1: the driver of these tensors did not run"

    def test_rounding_towards_zero(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What Triton's interpreter did to bfloat16 before its repair."""
        import triton.language as tl
        from triton.runtime import interpreter

        repaired = interpreter.InterpreterBuilder.cast_impl

        def truncate(builder: Any, source: Any, wanted: Any) -> Any:
            if (source.dtype.scalar, wanted.scalar) == (tl.float32, tl.bfloat16):
                bits = np.ascontiguousarray(source.data).view(np.uint32) >> 16
                return interpreter.TensorHandle(bits.astype(np.uint16).reshape(source.data.shape), tl.bfloat16)
            return repaired(builder, source, wanted)

        monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", truncate)
        (storage,) = find_storages(["bfloat16"])
        outcome = run_trial(Variant(TABLE["AdamW"], {}), storage, FEW, 1, CPU)
        assert all(not outcome.worst[slot].passed for slot in ("param", "exp_avg", "exp_avg_sq"))

    def test_only_a_jump_of_the_reference_is_allowed_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lion's sign of a sum of bfloat16 numbers that cancel: up to rounding 0 in float32, not in float64."""
        from rlx_gpu.parity import trial

        (storage,) = find_storages(["bfloat16"])
        cases = parse_shapes("40000")
        assert not run_trial(Variant(TABLE["Lion"], {}), storage, cases, 3, CPU).failures
        monkeypatch.setattr(trial, "JUMP", float("inf"))
        assert run_trial(Variant(TABLE["Lion"], {}), storage, cases, 3, CPU).failures


def test_a_warm_start_is_the_references_state(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlx_gpu.parity import tolerances, trial

    row = dataclasses.replace(tolerances.READ_BACK, warm=3)
    monkeypatch.setattr(trial, "tolerance", lambda spec, storage: row)
    for name in STORAGES:
        (storage,) = find_storages([name])
        begun = trial.Trial(Variant(TABLE["Adam"], {}), storage, FEW, CPU)
        begun.step()
        assert begun.t == 4 and not begun.outcome.failures
        assert int(begun.kernels.state_dict()["step/130"]) == 4
