"""What a rule tells the drivers about itself."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

Hyper = Mapping[str, Any]
Start = Callable[[Hyper, int, int], float]
ROW_WIDTH = 32  # float32 of a tensor's row: the scalars, and at its end the words of KEY
KEY = ("step", "seed_low", "seed_high")  # int32, of the random bits


@dataclass(frozen=True, eq=False)
class Row:
    """The numbers that every launch of a rule reads for one tensor at one step, and how the device computes them.

    Args:
        names: of the numbers, in the order in which rules unpack them.
        inputs: the hyperparameters that `scalars` unpacks behind lr, each of several numbers in a row of its own.
        scalars: JIT function `(hyper, step, counters) -> (row, counters)` on float64 blocks, a tensor an element.
            `hyper` is lr, already scaled (minus the scale where the optimizer has none), then the inputs, then the
            constants. None for a row that another rule's begins with.
        constants: numbers that float32, the format of a literal in a JIT function, does not hold.
    """

    names: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    scalars: Any = None
    constants: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) > ROW_WIDTH - len(KEY):
            raise ValueError(f"a row has at most {ROW_WIDTH - len(KEY)} numbers, got {len(self.names)}: {self.names}")

    def hypers(self, hyper: Hyper) -> list[float]:
        """What `scalars` unpacks for these hyperparameters, in float64."""
        lr = -1.0 if hyper["lr"] is None else hyper["lr"]
        if wrong := [name for name in self.inputs if hyper.get(name) is None]:
            raise ValueError(f"the row's input {wrong[0]!r} has no value: without it, `select` takes another rule")
        given = (hyper[name] for name in self.inputs)
        flat = (one for value in given for one in (value if isinstance(value, tuple) else (value,)))
        return [float(lr), *map(float, flat), *self.constants]


@dataclass(frozen=True, eq=False)
class Pass:
    """One launch over every tensor.

    Args:
        rule: JIT function `(param, grad, state, hyper) -> (param, state)`, all float32 blocks but `hyper`, the row as a
            tuple of float32 scalars. With `sums`, it returns a third tuple of blocks, each to be summed over the
            tensor.
        writes: the streams that this pass stores, of `"param"` and the slots.
        sums: how many per-tensor sums it returns. The next pass finds them, then the tensor's element count, behind
            its row.
        reads: the streams that what it stores and sums up depends on, of `"param"`, `"grad"` and the slots; None for
            all. The compiler removes the loads of the others, and what is compiled is held against this.
    """

    rule: Any
    writes: tuple[str, ...]
    sums: int = 0
    reads: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class RuleSpec:
    """One elementwise algorithm: its state slots, its passes and its row.

    Args:
        name: unique among all rules; a suffix tells variants apart (`sgd_momentum`).
        slots: state streams, each of the parameter's shape, in the order in which the rule receives them.
        passes: the launches, in order.
        row: the numbers that the passes read.
        counters: slots of one float64 number a tensor, which `row.scalars` carries on from step to step.
        offsets: the streams, as pairs with "workspace" or "grad", that lie at offsets from there.
    """

    name: str
    slots: tuple[str, ...]
    passes: tuple[Pass, ...]
    row: Row
    counters: tuple[str, ...] = ()
    offsets: tuple[tuple[str, str], ...] = ()
    shaped: ClassVar[bool] = False  # whether a parameter's shape matters, and not only its elements
    scheduled: ClassVar[bool] = False
    starts: ClassVar[Mapping[str, Start]] = {}

    def __post_init__(self) -> None:
        sums = 0
        for current in self.passes:
            for does, streams, known in (
                ("writes", current.writes, ("param", *self.slots)),
                ("reads", current.reads or (), ("param", "grad", *self.slots)),
            ):
                if unknown := [stream for stream in streams if stream not in known]:
                    rule = f"rule {self.name!r} {does} {unknown[0]!r}"
                    raise ValueError(f"{rule}, which is no such stream; it has {', '.join(known)}")
            check_row(self.name, current.rule, self.row, sums + bool(sums))
            sums = current.sums


@dataclass(frozen=True, eq=False)
class FactoredSpec:
    """An algorithm whose second moment of a matrix is kept as row and column means (slots `row_var`, `col_var`).

    All functions are JIT functions on float32 blocks; `hyper` is the row as a tuple of scalars.

    Args:
        name: unique among all rules.
        square: `(grad, hyper)`: the entry whose row and column means are tracked.
        accumulate: `(variance, mean_square, hyper)`: the new row or column variance, and its factor in the direction.
        direction: `(grad, row_factor, col_factor, row_mean, hyper)`: the update before clipping, of factors that
            broadcast and the mean of `row_var`.
        update: `(param, direction, direction_sq, param_sq, numel, hyper)`: the new parameter, from the sums of squares.
        row, counters: as in `RuleSpec`.
    """

    name: str
    square: Any
    accumulate: Any
    direction: Any
    update: Any
    row: Row
    counters: tuple[str, ...] = ()
    slots: tuple[str, ...] = ("row_var", "col_var")
    offsets: ClassVar[tuple[tuple[str, str], ...]] = ()
    shaped: ClassVar[bool] = True
    scheduled: ClassVar[bool] = False
    starts: ClassVar[Mapping[str, Start]] = {}

    def __post_init__(self) -> None:
        for rule in (self.square, self.accumulate, self.direction, self.update):
            check_row(self.name, rule, self.row, 0)


@dataclass(frozen=True, eq=False)
class MatrixSpec:
    """An algorithm on whole matrices: a rule prepares a batch, a routine computes directions, a rule applies them.

    Args:
        name: unique among all rules.
        routine: the module of `rlx_gpu.matrix` that computes the directions.
        slots: state tensors on the device. Those that `prepare` does not step lie in batches of equal shape.
        row: the numbers that all its rules read; those of `prepare` and `apply` begin it.
        prepare: the rule that writes a batch, in the parameter's place, from the gradients.
        apply: the rule that moves the parameters by the batch of directions, its only slot.
        scheduled: whether which launches a step makes depends on its number, so that the host must know it.
        flat: whether a parameter is one vector.
        numbers: those of the slots that hold one number for each matrix.
        batch_dtype: the hyperparameter that names the batch's format; float32 without one.
        counters: as in `RuleSpec`.
        between: the rule that the routine runs over a batch, of slots that lie in batches, if it does.
        starts: of counters that begin apart, `(hyper, place, count) -> value`: where a matrix begins that is the
            place-th, from 0, of `count` new ones of its shape.
    """

    name: str
    routine: str
    slots: tuple[str, ...]
    row: Row
    prepare: RuleSpec
    apply: RuleSpec
    scheduled: bool
    flat: bool = False
    numbers: tuple[str, ...] = ()
    batch_dtype: str | None = None
    counters: tuple[str, ...] = ()
    between: RuleSpec | None = None
    starts: Mapping[str, Start] = field(default_factory=dict)
    shaped: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.prepare.slots not in ((), self.slots):
            raise ValueError(f"rule {self.name!r}: {self.prepare.name!r} must step all of {self.slots} or none")
        for spec in (self.prepare, self.apply):
            if spec.row.names != self.row.names[: len(spec.row.names)]:
                raise ValueError(f"rule {self.name!r}: the row of {spec.name!r} does not begin {self.row.names}")


def check_row(name: str, rule: Any, row: Row, more: int) -> None:
    """Refuses a rule that unpacks another row, with `more` numbers behind it: compiled, one too many goes unnoticed."""
    if not hasattr(rule, "fn"):
        raise TypeError(f"rule {name!r}: {getattr(rule, '__name__', rule)} must be a @triton.jit function")
    for names in _unpacked(rule.fn):
        if names[: len(row.names)] != row.names or len(names) != len(row.names) + more:
            follows = f" and {more} more" if more else ""
            raise ValueError(f"rule {name!r} unpacks {', '.join(names)}; its row is {', '.join(row.names)}{follows}")


@functools.cache
def _unpacked(function: Callable[..., Any]) -> list[tuple[str, ...]]:
    """The names that a function gives to the elements of `hyper`, wherever it unpacks it."""
    found = []
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Name(id="hyper")):
                found.append(tuple(map(ast.unparse, names)))
    return found
