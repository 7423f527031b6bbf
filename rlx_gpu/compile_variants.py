"""Which kernels there are to compile: every optimizer's launches in every storage, and what serves them all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from .naming import chosen
from .table import TABLE, Algorithm

# Codecs of parameter, gradient and every slot, by the name in the dtype column.
STORAGES = {
    "float32": ("float32", "float32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16", "bfloat16"),
    "bfloat16_stochastic": ("bfloat16_stochastic", "bfloat16", "bfloat16"),
    "bfloat16_float32": ("bfloat16", "bfloat16", "float32"),
    "float16": ("float16", "float16", "float32"),
}
# Types of the arguments that describe tensors to the fused kernels.
TABLES = {
    "table_ptr": "*i64",
    "ranges_ptr": "*i64",
    "chunks_ptr": "*i32",
    "tiles_ptr": "*i32",
    "vectors_ptr": "*i32",
    "skipped_ptr": "*i32",
}
# Pointer types and bytes of the formats that matrix products take.
ELEMENTS = {"float32": ("*fp32", 4), "bfloat16": ("*bf16", 2), "float16": ("*fp16", 2)}


@dataclass(frozen=True)
class Variant:
    """One kernel as it is launched.

    Args:
        name: unique with `dtype`; the launches of one step are numbered or named behind a slash.
        family: "elementwise", "factored", "reduction" or "matrix".
        optimizer: as in `rlx_gpu.table`; None for a kernel that serves all.
        dtype: a key of STORAGES.
        kernel: the JIT function.
        constants: its compile-time arguments.
        block: a `rlx_gpu.traffic.Block`, or None without parameter-sized streams.
        arguments: types of arguments by name; the other pointers point to float32, the other numbers are int32.
        options: what it is launched with, if not as the elementwise kernels.
    """

    name: str
    family: str
    optimizer: str | None
    dtype: str
    kernel: Any
    constants: dict[str, Any]
    block: Any = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] | None = None


def variants(optimizers: Collection[str] = (), dtypes: Collection[str] = (), capability: int = 90) -> list[Variant]:
    """Every kernel variant for an architecture such as 90, or those of some optimizers and storages, if given.

    Raises:
        ValueError: an unknown optimizer or dtype.
        RuntimeError: Triton interprets kernels in this process, or is not installed.
    """
    try:
        import triton
    except ImportError as error:
        raise RuntimeError("compiling kernels needs Triton, which is not installed: pip install triton") from error
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: Triton interprets kernels and compiles none; unset it")
    storages = chosen(dtypes, STORAGES, "dtype")
    found = [
        variant
        for name in chosen(optimizers, TABLE, "optimizer")
        for dtype in storages
        for variant in _optimizer_variants(TABLE[name], dtype)
    ]
    if optimizers:
        return found
    return [*found, *_reduction_variants(storages), *_matrix_variants(storages, capability)]


def _optimizer_variants(algorithm: Algorithm, dtype: str) -> Iterator[Variant]:
    from .kernels.spec import RuleSpec

    hyper = algorithm.scaled(algorithm.resolve({"lr": 1e-3}), 1.0)
    for spec in algorithm.rules.SPECS:
        scalars = len(spec.scalars(hyper, 1, dict(spec.counters or {})))
        launches = _elementwise_launches if isinstance(spec, RuleSpec) else _factored_launches
        yield from launches(spec, algorithm.name, dtype, scalars)


def _codecs(dtype: str, slots: Sequence[str]) -> tuple[Any, ...]:
    from .kernels.codecs import CODECS

    param, grad, slot = STORAGES[dtype]
    return tuple(CODECS[name] for name in (param, grad, *(slot for _ in slots)))


def _elementwise_launches(spec: Any, optimizer: str | None, dtype: str, scalars: int) -> Iterator[Variant]:
    from .kernels import elementwise
    from .traffic import Block

    family = "elementwise" if optimizer else "reduction"
    block = Block((elementwise.BLOCK,), (elementwise.TAIL_BLOCK,))
    for index in range(len(spec.passes)):
        name = spec.name if len(spec.passes) == 1 else f"{spec.name}/{index + 1}"
        constants = elementwise.constants(spec, index, _codecs(dtype, spec.slots), scalars)
        yield Variant(name, family, optimizer, dtype, elementwise.fused_step_kernel, constants, block, TABLES)


def _factored_launches(spec: Any, optimizer: str, dtype: str, scalars: int) -> Iterator[Variant]:
    from .kernels import factored
    from .traffic import Block

    tile = (factored.TILE_ROWS, factored.TILE_COLS)
    parts = Block((factored.PART_ROWS, tile[1]), (1, tile[1]), repeats=tile[0] // factored.PART_ROWS)
    kernels = {
        "sums": (factored.factored_sums_kernel, Block(tile, (factored.PART_ROWS, tile[1]))),
        "moments": (factored.factored_moments_kernel, None),
        "norms": (factored.factored_step_kernel, parts),
        "update": (factored.factored_step_kernel, parts),
    }
    for launch, constants in factored.constants(spec, _codecs(dtype, spec.slots), scalars).items():
        kernel, block = kernels[launch]
        yield Variant(f"{spec.name}/{launch}", "factored", optimizer, dtype, kernel, constants, block, TABLES)


def _reduction_variants(storages: Sequence[str]) -> Iterator[Variant]:
    from .kernels import reductions

    for dtype in ("float32", "bfloat16", "float16"):
        if dtype in storages:
            yield from _elementwise_launches(reductions.SQUARED_NORM, None, dtype, 0)
    if "float32" in storages:
        specs = [spec for algorithm in TABLE.values() for spec in algorithm.rules.SPECS]
        counts = {current.sums for spec in specs for current in getattr(spec, "passes", ())} - {0}
        for sums in sorted(counts):
            constants = {"SUMS": sums, "BLOCK": reductions.FINISH_BLOCK}
            kernel = reductions.finish_sums_kernel
            yield Variant(f"finish_sums/{sums}", "reduction", None, "float32", kernel, constants, arguments=TABLES)
        yield Variant("guard", "reduction", None, "float32", reductions.guard_kernel, {}, arguments=TABLES)


def _matrix_variants(storages: Sequence[str], capability: int) -> Iterator[Variant]:
    """The matrix kernels by tile size and layout, with masks; other launches leave these out."""
    from .kernels import householder, symmetric, tf32
    from .kernels.tiles import tilings

    for dtype, (element, size) in ELEMENTS.items():
        if dtype not in storages:
            continue
        arguments = {**dict.fromkeys(("x_ptr", "y_ptr", "c_ptr", "out_ptr"), element), "alpha": "fp32", "beta": "fp32"}
        units = ("cols",) if dtype == "float32" else ("cols", "rows")
        tiles = tilings(size, capability)
        cuts = dict.fromkeys([*product((tiles.large, tiles.small), units), (tiles.unaligned, "none")])
        for (tiling, unit), with_c in product(cuts, (False, True)):
            name = f"symmetric_product/{tiling.block}_{unit}{'_c' if with_c else ''}"
            constants: dict[str, Any] = {"HAS_C": with_c, "UNIT": unit, "WHOLE": False, **tiling.constants}
            kernel = symmetric.symmetric_product_kernel
            yield Variant(name, "matrix", None, dtype, kernel, constants, None, arguments, tiling.options)
    if "float32" in storages:
        yield Variant("split", "matrix", None, "float32", tf32.split_kernel, {"BLOCK": tf32.BLOCK})
        kernel, options = householder.householder_kernel, householder.LAUNCH_OPTIONS
        constants, arguments = dict(householder.CONSTANTS), {"failed_ptr": "*i32"}
        yield Variant("householder", "matrix", None, "float32", kernel, constants, None, arguments, options)
