"""The registry: every optimizer by name. Everything that lists optimizers iterates it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

from .reference.checkpoint import FIRST, signed
from .reference.hyper import Hyper, resolve
from .reference.matrices import has_fallback


@dataclass(frozen=True)
class Algorithm:
    """One optimizer: its reference in NumPy, which also declares its hyperparameters, and its rule in Triton.

    Args:
        name: the class name, `AdamW`; the modules are its lower case.
        example_lr: a learning rate that trains the example model of `rlx-gpu train`; None leaves it to the optimizer.
        hidden_only: whether the rule is meant for a model's hidden matrices alone; named parameters are then split.
        workspace: the memory that a step on a GPU takes for its duration, in words; none where it is empty.
    """

    name: str
    example_lr: float | None
    hidden_only: bool = False
    workspace: str = ""

    @cached_property
    def reference(self) -> ModuleType:
        """The module of `rlx_gpu.reference`: `HYPERPARAMETERS`, `init_state` and `update`."""
        return importlib.import_module(f"rlx_gpu.reference.{self.name.lower()}")

    @cached_property
    def rules(self) -> ModuleType:
        """The module of `rlx_gpu.kernels.rules`: `SPECS`, and `select` where there is a choice. Needs Triton."""
        return importlib.import_module(f"rlx_gpu.kernels.rules.{self.name.lower()}")

    def select(self, hyper: Mapping[str, Any], ndim: int) -> Any:
        """The rule of a parameter with so many dimensions; the first of `SPECS` unless the rules' module chooses."""
        choose = getattr(self.rules, "select", None)
        return choose(hyper, ndim) if choose else self.rules.SPECS[0]

    @property
    def matrix_bucket(self) -> Any:
        """The driver of whole matrices; loaded by name, as it is built on the engine that asks for it."""
        return importlib.import_module("rlx_gpu.matrix.bucket").MatrixBucket

    @property
    def hyperparameters(self) -> tuple[Hyper, ...]:
        """The declared hyperparameters, in order."""
        declared: tuple[Hyper, ...] = self.reference.HYPERPARAMETERS
        return declared

    @cached_property
    def structural(self) -> tuple[str, ...]:
        """Names of the hyperparameters whose value, or its absence, decides the rule and its buffers."""
        return tuple(hyper.name for hyper in self.hyperparameters if hyper.structural)

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every hyperparameter, checked: the given ones, defaults for the others.

        Raises:
            TypeError: an unknown hyperparameter, or a required one missing.
            ValueError: a value out of range, or two that exclude each other.
        """
        hyper = resolve(self.hyperparameters, given, self.name)
        if hasattr(self.reference, "check"):
            self.reference.check(hyper)
        return hyper

    @property
    def revision(self) -> tuple[int, str]:
        """Of the rule, which checkpoints name, and what the one before it had."""
        found: tuple[int, str] = getattr(self.reference, "REVISION", FIRST)
        return found

    @property
    def signed(self) -> dict[str, Any]:
        """What a checkpoint says of whose it is."""
        return signed(self.name, self.revision)

    @property
    def scalar_slots(self) -> tuple[str, ...]:
        """The slots of one float64 number per parameter (a running product), the step apart."""
        slots: tuple[str, ...] = getattr(self.reference, "SCALAR_SLOTS", ())
        return slots

    @property
    def full_slots(self) -> tuple[str, ...]:
        """The slots that are kept in full precision, whatever format the state has."""
        slots: tuple[str, ...] = getattr(self.reference, "FULL_PRECISION_SLOTS", ())
        return slots

    @property
    def of_matrices(self) -> bool:
        """Whether it treats matrices apart, and everything else by a fallback."""
        return has_fallback(self.reference)

    @property
    def memory_doc(self) -> str:
        """The section of a docstring about memory beyond the state; empty if there is nothing to say."""
        title = "\n\nMemory beyond the state, while a step runs on a GPU:\n    "
        return title + self.workspace if self.workspace else ""


_ALGORITHMS = (
    Algorithm("SGD", example_lr=0.1),
    Algorithm("Adam", example_lr=3e-3),
    Algorithm("AdamW", example_lr=3e-3),
    Algorithm("NAdamW", example_lr=3e-3),
    Algorithm("RAdam", example_lr=3e-3),
    Algorithm("QHAdamW", example_lr=3e-3),
    Algorithm("Lion", example_lr=5e-4),
    Algorithm("Sophia", example_lr=3e-2),
    Algorithm("LAMB", example_lr=1e-2),
    Algorithm("MARS", example_lr=3e-3),
    Algorithm("Adafactor", example_lr=None),
    Algorithm(
        "Muon",
        example_lr=0.02,
        hidden_only=True,
        workspace="""\
the matrices in ns_dtype, at most 2**30 elements of them (or one matrix) at a time; and for those of one
    shape, at most 2**27 elements, the same once more and two m x m, m the shorter side.""",
    ),
    Algorithm(
        "SOAP",
        example_lr=3e-3,
        workspace="""\
float32 gradients of matrices of one shape, at most 2**28 elements (or one matrix), three times; and for
    those whose bases change about ten d x d, d the longer side.""",
    ),
    Algorithm(
        "KronPSGD",
        example_lr=1e-3,
        workspace="""\
float32 gradients of matrices of one shape, at most 2**28 elements (or one matrix), twice; and four d x d
    for each, d the longer side.""",
    ),
)
TABLE = {algorithm.name: algorithm for algorithm in _ALGORITHMS}
