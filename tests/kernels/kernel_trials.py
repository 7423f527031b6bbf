"""What parity's trial does not do: more layouts, steps whose errors add up, and which launches a step makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import CASES, CPU, Case, fitting, tensor_of

from rlx_gpu.engine import launch
from rlx_gpu.parity import trial
from rlx_gpu.parity.storages import Formats, find_storages
from rlx_gpu.parity.tolerances import ONE_STEP
from rlx_gpu.parity.trial import largest
from rlx_gpu.parity.variants import Variant

(FLOAT32,) = find_storages(["float32"])
# What parity iterates but for stochastic rounding, which has tests of its own; and gradients of another format.
STORAGES = [
    *(formats for formats in find_storages() if formats.rounding == "nearest"),
    Formats("float32_bfloat16_grad", "float32", "bfloat16", "float32"),
]
AT_MOST = 20.0  # times the largest magnitude that a tensor has, whatever it has had


class ForcedTrial(trial.Trial):
    """Parity's trial on the CPU; where the reference jumps, nothing more is allowed.

    Args:
        variant, cases, formats, options: as parity's.
    """

    relative = 5e-7  # of the largest magnitude: half of what parity allows is enough for one step from these numbers

    def __init__(
        self, variant: Variant, cases: Sequence[Case] = CASES, formats: Formats = FLOAT32, **options: Any
    ) -> None:
        self.spoiled: Mapping[str, float] = {}  # by parameter, what to put into one element of its gradient
        super().__init__(variant, formats, cases, CPU, **options)
        self.tolerances = {name: replace(row, relative=self.relative) for name, row in self.tolerances.items()}

    def check(self) -> None:
        """Compares parameters and slots; fails for whatever has been wrong so far."""
        self.compare()
        assert not self.outcome.failures, "\n".join(self.outcome.failures)

    def start(self, case: Case) -> np.ndarray:
        return np.multiply(super().start(case), case.param_size, out=np.empty(case.shape))

    def gradient(self, case: Case) -> np.ndarray:
        values = np.multiply(super().gradient(case), case.grad_size, out=np.empty(case.shape))
        if case.name in self.spoiled:
            values.flat[values.size // 2] = self.spoiled[case.name]
        return fitting(values, case.grad_layout)

    def estimate(self, case: Case) -> np.ndarray:
        return fitting(super().estimate(case), case.grad_layout)

    def tensor(self, values: np.ndarray, dtype: str, layout: str) -> torch.Tensor:
        return tensor_of(values, dtype, layout)

    def spread(self) -> dict[str, np.ndarray]:
        return {key: np.zeros(value.shape) for key, value in self.wanted.items()}


class Trial(ForcedTrial):
    """A trial whose reference goes on from its own numbers: what parity allows a step, all of them may add up to."""

    relative = ONE_STEP.relative

    def __init__(self, *given: Any, **options: Any) -> None:
        self.wanted: dict[str, np.ndarray] = {}
        self.scales: dict[str, float] = {}
        super().__init__(*given, **options)

    def advance(self, cases: Sequence[Case] | None = None) -> None:
        super().advance(cases)
        for key in self.wanted:
            self.scales[key] = max(self.scales.get(key, 0.0), super().scale(key))

    def expected(self, grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.reference_step(self.wanted or self.before, grads)

    def scale(self, key: str) -> float:
        """The largest so far: what was lost when a number was large is still missing when it has become small."""
        return min(self.scales[key], AT_MOST * largest(self.wanted[key]))


def specs_of(variant: Variant, ndims: Iterable[int]) -> list[Any]:
    """The rules that parameters of these numbers of dimensions run."""
    return list({id(spec): spec for spec in map(variant.spec, sorted(ndims))}.values())


@contextmanager
def recorded_launches() -> Iterator[list[tuple[str, Any]]]:
    """The launches made inside, in order: the kernel's name and the rule or rules it ran."""
    made: list[tuple[str, Any]] = []
    real = launch.launch

    def spy(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        before = launch.launches[kernel.__name__]
        real(kernel, programs, *arguments, **constants)
        if launch.launches[kernel.__name__] > before:
            made.append((kernel.__name__, constants.get("RULE", constants.get("RULES"))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch", spy)
        yield made


def expected_launches(specs: Iterable[Any]) -> list[tuple[str, Any]]:
    """The launches of one step in one storage format, by the rules' own account."""
    specs = list(specs)
    wanted: list[tuple[str, Any]] = [("rows_kernel", None)] * len(specs)
    for spec in specs:
        if hasattr(spec, "passes"):
            for current in spec.passes:
                wanted.append(("fused_step_kernel", current.rule))
                wanted += [("finish_sums_kernel", None)] * bool(current.sums)
        else:
            rules = (spec.square, spec.accumulate, spec.direction, spec.update)
            wanted += [("factored_sums_kernel", rules), ("factored_moments_kernel", rules)]
            wanted += [("finish_sums_kernel", None), ("factored_step_kernel", rules)]
            wanted += [("finish_sums_kernel", None), ("factored_step_kernel", rules)]
    return wanted


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's bits, so that NaN equals itself and -0 differs from 0."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(width).numpy().copy()


def all_bits(optimizer: Any, params: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Every parameter's and slot's bits, and the step counts."""
    state = optimizer.state_dict()
    result: dict[str, Any] = {f"param/{name}": bits(param) for name, param in params.items()}
    for key, value in state.items():
        if "/" in key:
            result[key] = bits(value) if isinstance(value, torch.Tensor) else value
    return result


def assert_same_bits(left: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    """Every array equal to the last bit."""
    assert left.keys() == right.keys()
    different = [key for key in left if not np.array_equal(left[key], right[key])]
    assert not different, f"bits differ: {different}"
