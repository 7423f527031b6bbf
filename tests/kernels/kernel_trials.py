"""A trial: the kernels and the reference side by side on the same parameters and gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import CASES, Case, drawn_values, tensor_of
from kernel_tolerances import FLOAT32, PROMISED, Storage, errors, largest
from kernel_variants import Variant

from rlx_gpu import launch, reference

GRAD_SIZES = (1.0, 0.25, 2.0, 0.5, 0.125)  # by step, so that second moments fall and rise


class Trial:
    """Runs an optimizer of `rlx_gpu` on torch tensors, and its reference on NumPy arrays in float64.

    Args:
        variant: the optimizer.
        cases: the parameters, all stepped in one batch.
        storage: formats and tolerance.
        options: of both constructors.
    """

    def __init__(
        self,
        variant: Variant,
        cases: Sequence[Case] = CASES,
        storage: Storage = FLOAT32,
        **options: Any,
    ) -> None:
        self.cases, self.storage = cases, storage
        self.rng, self.hessian_rng = np.random.default_rng(23), np.random.default_rng(24)
        self.kernels = variant.make(state_dtype=storage.state, **options)
        self.reference = variant.make(reference, **options)
        self.expected = {
            case.name: drawn_values(case, self.rng, storage.param, case.param_size, case.layout) for case in cases
        }
        dtype = getattr(torch, storage.param)
        self.params = {case.name: tensor_of(self.expected[case.name], dtype, case.layout) for case in cases}
        self.expected = {name: np.array(values) for name, values in self.expected.items()}
        self.reads_back = any(hasattr(spec, "accumulate") or writes_slots_early(spec) for spec in variant.specs({1, 2}))
        self.scales = {key: largest(value) for key, value in self.wanted().items()}
        self.t = 0

    def step(self, cases: Sequence[Case] | None = None, spoiled: Mapping[str, float] | None = None) -> None:
        """One iteration of both; what the kernels had before it is kept for the comparison.

        Args:
            cases: the parameters to step, all unless given.
            spoiled: by parameter, what to put into one element of its gradient.
        """
        cases = self.cases if cases is None else cases
        if self.storage.forced and self.t:
            self._align()
        self.before = self.actual()
        self.t += 1
        size, dtype = GRAD_SIZES[self.t % len(GRAD_SIZES)], getattr(torch, self.storage.grad)
        grads = {
            case.name: drawn_values(case, self.rng, self.storage.grad, case.grad_size * size, case.grad_layout)
            for case in cases
        }
        for name, value in (spoiled or {}).items():
            grads[name].flat[grads[name].size // 2] = value
        tensors = {case.name: tensor_of(grads[case.name], dtype, case.grad_layout) for case in cases}
        untouched = {name: grad.clone() for name, grad in tensors.items()}
        items = [(case.name, case.shape, self.params[case.name], tensors[case.name]) for case in cases]
        self.kernels.step_batch(items)
        self.kernels.end_iteration()
        for name, grad in tensors.items():
            assert np.array_equal(bits(grad), bits(untouched[name])), f"{name}: the gradient was written"
        self.reference.step_batch((n, shape, self.expected[n], grads[n]) for n, shape, _, _ in items)
        self.reference.end_iteration()
        self._grow_scales()

    def update_hessian(self) -> None:
        """Mixes estimates into both, positive and negative."""
        for case in self.cases:
            estimate = drawn_values(case, self.hessian_rng, self.storage.grad, 20.0, case.grad_layout, mean=8.0)
            tensor = tensor_of(estimate, getattr(torch, self.storage.grad), case.grad_layout)
            self.kernels.update_hessian(case.name, tensor)
            self.reference.update_hessian(case.name, np.array(estimate))
        self._grow_scales()

    def check(self) -> None:
        """Compares parameters and slots.

        Raises:
            AssertionError: lists every array that is outside the tolerance.
        """
        expected = self.wanted()
        slack = {key: self.slack(key, value) for key, value in expected.items()}
        wrong = errors(self.actual(), expected, slack, self.formats(expected))
        assert not wrong, f"step {self.t}:\n" + "\n".join(wrong)

    def slack(self, key: str, wanted: np.ndarray) -> float:
        """How far one array may be off before the rounding."""
        allowed = min(self.storage.relative * self.scales[key], PROMISED * largest(wanted))
        if self.reads_back and key.startswith("param/"):
            allowed += self.storage.of_change * largest(wanted - self.before[key])
        return allowed

    def actual(self) -> dict[str, np.ndarray]:
        """What the kernels have stored, in float64."""
        params = {f"param/{name}": param.double().numpy().copy() for name, param in self.params.items()}
        return params | numbers(self.kernels.state_dict())

    def wanted(self) -> dict[str, np.ndarray]:
        """What the reference has, not rounded to any format."""
        params = {f"param/{name}": np.array(values) for name, values in self.expected.items()}
        return params | numbers(self.reference.state_dict())

    def formats(self, keys: Mapping[str, Any]) -> dict[str, str]:
        """The storage format of each array."""
        slots = {"param": self.storage.param, "step": "float64", "mu_product": "float64"}
        return {key: slots.get(key.partition("/")[0], self.storage.state) for key in keys}

    def _align(self) -> None:
        """The reference takes over what the kernels have stored, so that a comparison spans one step."""
        state = self.kernels.state_dict()
        counts = {key: value for key, value in state.items() if key.startswith("step/")}
        self.reference.load_state_dict({**state, **numbers(state), **counts})
        self.expected = {name: param.double().numpy().copy() for name, param in self.params.items()}
        self.scales = {key: largest(value) for key, value in self.wanted().items()}

    def _grow_scales(self) -> None:
        for key, value in self.wanted().items():
            self.scales[key] = max(self.scales.get(key, 0.0), largest(value))


def writes_slots_early(spec: Any) -> bool:
    """Whether a pass before the last stores a slot, so that the last reads it rounded."""
    return any(slot in current.writes for current in spec.passes[:-1] for slot in spec.slots)


def numbers(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The slots and step counts of a state dict as NumPy arrays in float64."""
    return {key: torch.as_tensor(value).double().numpy().copy() for key, value in state.items() if "/" in key}


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


def expected_launches(specs: Sequence[Any]) -> list[tuple[str, Any]]:
    """The launches of one step in one storage format, by the rules' own account."""
    wanted: list[tuple[str, Any]] = []
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
