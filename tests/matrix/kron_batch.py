"""A batch stepped by KronPSGD's routine, and its matrices stepped by the float64 reference."""

from __future__ import annotations

import numpy as np
import torch
from matrix_steps import told

from rlx_gpu.kernels.rules.kronpsgd import DIAGONAL, KRON
from rlx_gpu.matrix import kron
from rlx_gpu.reference import hyper as declared
from rlx_gpu.reference import kronpsgd as reference

# float32 against float64, relative to the distance walked and to the largest entry of a slot. The largest seen in any
# case here is 9e-7, fifteen roundings of 2⁻²⁴; another order of summation gives others.
TOLERANCE = 4e-6


def hypers(**given):
    return declared.resolve(reference.HYPERPARAMETERS, {"lr": 0.01, "weight_decay": 0.1, **given}, reference.NAME)


class Batch:
    """Parameters of one shape, stepped by the routine as one batch and by the reference one by one."""

    def __init__(self, count, shape, dtype=torch.float32, starts=None, **given):
        self.hyper, self.rng, self.shape = hypers(**given), np.random.default_rng(7), shape
        self.steps = list(starts or [0] * count)
        self.expected = [self.rng.standard_normal(shape) for _ in range(count)]
        self.states = [reference.init_state(shape, **self.hyper) for _ in range(count)]
        self.walked = np.zeros((count, *shape))
        self.param = torch.tensor(np.stack(self.expected))  # float64, so that only the direction's errors are seen
        slots = {slot: array.shape for slot, array in self.states[0].items()}
        self.state = {
            slot: torch.zeros(count, *size, dtype=torch.float32 if "lipschitz" in slot else dtype)
            for slot, size in slots.items()
        }

    def gradients(self):
        return self.rng.standard_normal((len(self.expected), *self.shape)).astype(np.float32)

    def told(self, **other):
        """The next step."""
        self.steps = [step + 1 for step in self.steps]
        return told(KRON if len(self.shape) == 2 else DIAGONAL, {**self.hyper, **other}, self.steps)

    def step(self, grads, layout=torch.clone, **other):
        """One step of both with float32 gradients [B, ...]; `other` are hyperparameters for the routine alone."""
        update = kron.direction(layout(torch.tensor(grads)), self.state, self.told(**other))
        self.param -= self.hyper["lr"] * (update + self.hyper["weight_decay"] * self.param)
        for i, (param, state) in enumerate(zip(self.expected, self.states, strict=True)):
            grad = grads[i].astype(np.float64)
            self.expected[i], self.states[i] = reference.update(param, grad, state, self.steps[i], **self.hyper)
            self.walked[i] += np.abs(self.expected[i] - param)

    def errors(self):
        """By slot, and for the parameter, the largest error of any matrix relative to its size."""
        found = {"param": error(self.param, np.stack(self.expected), self.walked)}
        for slot, actual in self.state.items():
            expected = np.stack([state[slot] for state in self.states])
            found[slot] = error(actual, expected, expected)
        return found

    def check(self, tolerance=TOLERANCE):
        for slot, size in self.errors().items():
            assert size <= tolerance, f"{slot} is off by {size:.1e}, more than {tolerance:.1e}"


def error(actual, expected, size):
    """max|actual − expected| / max|size| of each entry of the batch, the largest of them."""
    difference = np.abs(actual.double().numpy() - expected).reshape(len(expected), -1).max(1)
    sizes = np.abs(size).reshape(len(expected), -1).max(1)
    return np.max(difference / np.where(sizes == 0, 1.0, sizes))
