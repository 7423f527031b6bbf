"""Models of matrices and vectors, stepped by an optimizer of the package and by its reference side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import rlx_gpu

# Two matrices of one shape, odd sizes, tall, wide, square, a row, a column, stacks of matrices, and no matrices at all.
SHAPES: dict[str, tuple[int, ...]] = {
    "first": (12, 20),
    "second": (12, 20),
    "tall": (33, 7),
    "square": (16, 16),
    "row": (1, 9),
    "column": (9, 1),
    "vector": (13,),
    "scalar": (),
    "empty": (0, 5),
    "stack": (3, 6, 5),
    "kernel": (4, 3, 2, 2),
}
TRANSPOSED = {"transposed": (10, 14)}
BASE = {"lr": 0.05, "weight_decay": 0.1}


class Pair:
    """An optimizer of the package on tensors, and its reference on float64 arrays.

    Args:
        name: of the optimizer.
        hyper: hyperparameters and options of both.
        shapes: by parameter; names in TRANSPOSED lie column by column in memory.
        device: of the tensors.
    """

    def __init__(
        self,
        name: str,
        hyper: dict[str, Any],
        shapes: dict[str, tuple[int, ...]] | None = None,
        device: str = "cpu",
    ) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(5)
        shapes = {**SHAPES, **TRANSPOSED} if shapes is None else shapes
        self.ours = getattr(rlx_gpu, name)(**{**BASE, **hyper})
        self.reference = getattr(rlx_gpu.reference, name)(**{**BASE, **hyper})
        self.params = {key: self.tensor(key, shape) for key, shape in shapes.items()}
        self.expected = {key: as_array(param) for key, param in self.params.items()}
        self.start = {key: value.copy() for key, value in self.expected.items()}

    def tensor(self, key: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Normal numbers in the parameter's memory order."""
        if key in TRANSPOSED:
            return torch.randn(shape[::-1], generator=self.generator).to(self.device).T
        return torch.randn(shape, generator=self.generator).to(self.device)

    def step(self, grads: dict[str, torch.Tensor] | None = None, names: list[str] | None = None) -> None:
        """One iteration of both on the same gradients."""
        names = list(self.params) if names is None else names
        grads = grads or {name: self.tensor(name, self.params[name].shape) for name in names}
        self.ours.step_batch([(n, tuple(self.params[n].shape), self.params[n], grads[n]) for n in names])
        self.ours.end_iteration()
        self.reference.step_batch([(n, self.expected[n].shape, self.expected[n], as_array(grads[n])) for n in names])
        self.reference.end_iteration()

    def warm_up(self, steps: int) -> None:
        """Lets the reference alone step so often, and ours go on from its state."""
        for _ in range(steps):
            self.reference.step_batch(
                [(n, v.shape, v, as_array(self.tensor(n, v.shape))) for n, v in self.expected.items()]
            )
            self.reference.end_iteration()
        self.share_state()

    def share_state(self) -> None:
        """The reference's state and parameters, taken over by ours."""
        self.ours.load_state_dict(self.reference.state_dict())
        for name, param in self.params.items():
            param.copy_(torch.from_numpy(self.expected[name]))
            self.expected[name] = as_array(param)
            self.start[name] = self.expected[name].copy()

    def errors(self) -> dict[str, float]:
        """By parameter, the largest difference relative to the distance it has moved (its largest entry)."""
        found = {}
        for name, want in self.expected.items():
            moved = np.abs(want - self.start[name]).max(initial=0.0)
            gap = np.abs(as_array(self.params[name]) - want).max(initial=0.0)
            found[name] = gap / moved if moved else gap
        return found

    def slot_errors(self) -> dict[str, float]:
        """By state key, the largest difference relative to the slot's largest entry."""
        want, got = self.reference.state_dict(), self.ours.state_dict()
        found = {}
        for key in [key for key in want if "/" in key]:
            one, other = np.asarray(want[key], np.float64), as_array(torch.as_tensor(got[key]))
            assert one.shape == other.shape, key
            size = np.abs(one).max(initial=0.0)
            gap = np.abs(one - other).max(initial=0.0)
            found[key] = gap / size if size else gap
        return found


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A float64 copy on the host."""
    return tensor.detach().double().cpu().contiguous().numpy().copy()


def assert_below(found: dict[str, float], tolerance: float) -> None:
    """Every error below the tolerance; NaN is not."""
    wrong = {key: error for key, error in found.items() if not error <= tolerance}
    assert not wrong, wrong
