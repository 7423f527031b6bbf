"""What a rule tells the driver about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

Hyper = Mapping[str, Any]
Counters = MutableMapping[str, float]
Start = Callable[[Hyper, int, int], float]


@dataclass(frozen=True, eq=False)
class Pass:
    """One launch over every tensor.

    Args:
        rule: JIT function `(param, grad, state, hyper) -> (param, state)`, all float32 blocks but `hyper`, a tuple of
            float32 scalars. With `sums`, it returns a third tuple of blocks, each to be summed over the tensor.
        writes: the streams that this pass stores, of `"param"` and the slots. A stream that is neither written nor used
            is never loaded: the compiler removes it.
        sums: how many per-tensor sums it returns. The next pass finds them, then the tensor's element count, behind
            its hyperparameters.
    """

    rule: Any
    writes: tuple[str, ...]
    sums: int = 0


@dataclass(frozen=True, eq=False)
class RuleSpec:
    """One elementwise algorithm: its state slots, its passes and the scalars that the host computes for it.

    Args:
        name: unique among all rules; a suffix tells variants apart (`sgd_momentum`).
        slots: state streams, each of the parameter's shape, in the order in which the rule receives them.
        passes: the launches, in order.
        scalars: `(hyper, step, counters) -> floats`, float64 on the host. `hyper["lr"]` is already scaled. It may
            advance `counters` (host-side state such as a running product) in place.
        counters: host-side state with its initial values.
    """

    name: str
    slots: tuple[str, ...]
    passes: tuple[Pass, ...]
    scalars: Callable[[Hyper, int, Counters], tuple[float, ...]]
    counters: Mapping[str, float] | None = None
    shaped: ClassVar[bool] = False  # whether a parameter's shape matters, and not only its elements
    scheduled: ClassVar[bool] = False
    starts: ClassVar[Mapping[str, Start]] = {}


@dataclass(frozen=True, eq=False)
class FactoredSpec:
    """An algorithm whose second moment of a matrix is kept as row and column means (slots `row_var`, `col_var`).

    All functions are JIT functions on float32 blocks; `hyper` is the tuple of scalars.

    Args:
        name: unique among all rules.
        square: `(grad, hyper)`: the entry whose row and column means are tracked.
        accumulate: `(variance, mean_square, hyper)`: the new row or column variance, and its factor in the direction.
        direction: `(grad, row_factor, col_factor, row_mean, hyper)`: the update before clipping, of factors that
            broadcast and the mean of `row_var`.
        update: `(param, direction, direction_sq, param_sq, numel, hyper)`: the new parameter, from the sums of squares.
        scalars, counters: as in `RuleSpec`.
    """

    name: str
    square: Any
    accumulate: Any
    direction: Any
    update: Any
    scalars: Callable[[Hyper, int, Counters], tuple[float, ...]]
    counters: Mapping[str, float] | None = None
    slots: tuple[str, ...] = ("row_var", "col_var")
    shaped: ClassVar[bool] = True
    scheduled: ClassVar[bool] = False
    starts: ClassVar[Mapping[str, Start]] = {}


@dataclass(frozen=True, eq=False)
class MatrixSpec:
    """An algorithm on whole matrices: batched routines do the work, and elementwise rules what lies before and after.

    Args:
        name: unique among all rules.
        routine: the module of `rlx_gpu.matrix` that steps batches of it.
        slots: state tensors on the device.
        scalars: as in `RuleSpec`; the first two are lr and λ.
        scheduled: whether which launches a step makes depends on its number, so that the host must know it.
        flat: whether a parameter is one vector.
        numbers: those of the slots that hold one number for each matrix.
        counters: as in `RuleSpec`.
        starts: of counters that begin apart, `(hyper, place, count) -> value`: where a matrix begins that is the
            place-th, from 0, of `count` new ones of its shape.
    """

    name: str
    routine: str
    slots: tuple[str, ...]
    scalars: Callable[[Hyper, int, Counters], tuple[float, ...]]
    scheduled: bool
    flat: bool = False
    numbers: tuple[str, ...] = ()
    counters: Mapping[str, float] | None = None
    starts: Mapping[str, Start] = field(default_factory=dict)
    shaped: ClassVar[bool] = True
