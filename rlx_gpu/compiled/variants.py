"""Which kernels there are to compile: every optimizer's launches in every storage, and what serves them all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ..kernels.formats import STORAGES
from ..naming import chosen
from ..table import TABLE, Algorithm

# Types of the arguments that describe tensors to the fused kernels.
TABLES = {
    "table_ptr": "*i64",
    "ranges_ptr": "*i64",
    "chunks_ptr": "*i32",
    "tiles_ptr": "*i32",
    "vectors_ptr": "*i32",
    "grads_ptr": "*i64",
    "hypers_ptr": "*fp64",
}
# The kernel of a step's words: its name, norms, and whether it is guarded and clipped.
WORDS = (
    ("words/scaled", 0, False, False),
    ("words/clipped", 1, False, True),
    ("words/guarded", 1, True, False),
    ("words/guarded_clipped", 1, True, True),
)
# Pointer types and bytes of the formats that matrix products take.
ELEMENTS = {"float32": ("*fp32", 4), "bfloat16": ("*bf16", 2), "float16": ("*fp16", 2)}


@dataclass(frozen=True)
class Variant:
    """One kernel as it is launched.

    Args:
        name: unique with `dtype`; the launches of one step are numbered or named behind a slash.
        family: "elementwise", "factored", "rows", "reduction" or "matrix".
        optimizer: as in `rlx_gpu.table`; None for a kernel that serves all.
        dtype: a key of STORAGES.
        kernel: the JIT function.
        constants: its compile-time arguments.
        block: a `rlx_gpu.compiled.traffic.Block`, or None without parameter-sized streams.
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
    found: dict[Any, Variant] = {}  # what several rules, optimizers or storages launch, for the first of them
    for name in chosen(optimizers, TABLE, "optimizer"):
        for dtype in storages:
            for variant in _optimizer_variants(TABLE[name], dtype):
                found.setdefault((variant.kernel, *variant.constants.items()), variant)
    if optimizers:
        return list(found.values())
    return [*found.values(), *_reduction_variants(storages), *_matrix_variants(storages, capability)]


def _optimizer_variants(algorithm: Algorithm, dtype: str) -> Iterator[Variant]:
    """All launches of an optimizer's rules; rows of scalars have one format whatever the storage."""
    from ..kernels.spec import FactoredSpec, MatrixSpec

    for spec in algorithm.rules.SPECS:
        if isinstance(spec, MatrixSpec):
            batch = batch_format(spec, algorithm)
            yield from _elementwise_launches(spec.prepare.name, spec.prepare, algorithm, dtype, batch)
            yield from _elementwise_launches(f"{spec.name}/{spec.apply.name}", spec.apply, algorithm, dtype, batch)
        elif isinstance(spec, FactoredSpec):
            yield from _factored_launches(spec, algorithm, dtype)
        else:
            yield from _elementwise_launches(spec.name, spec, algorithm, dtype)
        if spec.row.scalars is not None and dtype == "float32":
            yield _rows_launch(spec, algorithm)


def batch_format(spec: Any, algorithm: Algorithm) -> str:
    """The format of a matrix rule's batches with the default hyperparameters."""
    defaults = {hyper.name: hyper.default for hyper in algorithm.hyperparameters}
    return defaults[spec.batch_dtype] if spec.batch_dtype else "float32"


def _rows_launch(spec: Any, algorithm: Algorithm) -> Variant:
    """The launch that computes a rule's rows; all but that of Hessian estimates count a step."""
    from ..kernels import rows

    hyper = algorithm.resolve({"lr": 1e-3})
    count = len(spec.row.hypers({name: 0.0 if value is None else value for name, value in hyper.items()}))
    constants = rows.constants(spec, count, spec is not getattr(algorithm.rules, "HESSIAN", None))
    return Variant(f"{spec.name}/row", "rows", algorithm.name, "float32", rows.rows_kernel, constants, None, TABLES)


def formats(spec: Any, algorithm: Algorithm | None, dtype: str, batch: str = "float32") -> dict[str, str]:
    """The names of the codecs of a rule's streams, by stream, in order.

    Args:
        spec: the rule, with `slots`.
        algorithm: whose; None for a rule that serves all.
        dtype: a key of STORAGES.
        batch: the format of what lies in the workspace.
    """
    param, grad, slot = STORAGES[dtype]
    full = algorithm.full_slots if algorithm else ()
    named = {"param": param, "grad": grad, **{name: "float32" if name in full else slot for name in spec.slots}}
    return named | {name: batch for name, base in getattr(spec, "offsets", ()) if base == "workspace"}


def _elementwise_launches(
    name: str, spec: Any, algorithm: Algorithm | None, dtype: str, batch: str = "float32"
) -> Iterator[Variant]:
    from ..kernels import elementwise
    from ..kernels.codecs import codecs_of
    from .traffic import Block

    optimizer, family = (algorithm.name, "elementwise") if algorithm else (None, "reduction")
    block = Block((elementwise.BLOCK,), (elementwise.TAIL_BLOCK,))
    for index in range(len(spec.passes)):
        launch = name if len(spec.passes) == 1 else f"{name}/{index + 1}"
        codecs = codecs_of(tuple(formats(spec, algorithm, dtype, batch).values()))
        constants = elementwise.constants(spec, index, codecs)
        yield Variant(launch, family, optimizer, dtype, elementwise.fused_step_kernel, constants, block, TABLES)


def _factored_launches(spec: Any, algorithm: Algorithm, dtype: str) -> Iterator[Variant]:
    from ..kernels import factored
    from ..kernels.codecs import codecs_of
    from .traffic import Block

    tile = (factored.TILE_ROWS, factored.TILE_COLS)
    parts = Block((factored.PART_ROWS, tile[1]), (1, tile[1]), repeats=tile[0] // factored.PART_ROWS)
    kernels = {
        "sums": (factored.factored_sums_kernel, Block(tile, (factored.PART_ROWS, tile[1]))),
        "moments": (factored.factored_moments_kernel, None),
        "norms": (factored.factored_step_kernel, parts),
        "update": (factored.factored_step_kernel, parts),
    }
    codecs = codecs_of(tuple(formats(spec, algorithm, dtype).values()))
    for launch, constants in factored.constants(spec, codecs).items():
        kernel, block = kernels[launch]
        yield Variant(f"{spec.name}/{launch}", "factored", algorithm.name, dtype, kernel, constants, block, TABLES)


def _reduction_variants(storages: Sequence[str]) -> Iterator[Variant]:
    from ..kernels import reductions, words

    for dtype in ("float32", "bfloat16", "float16"):
        if dtype in storages:
            yield from _elementwise_launches("squared_norm", reductions.SQUARED_NORM, None, dtype)
    if "float32" in storages:
        specs = [spec for algorithm in TABLE.values() for spec in algorithm.rules.SPECS]
        rules = [getattr(spec, "prepare", spec) for spec in specs]
        counts = {current.sums for rule in rules for current in getattr(rule, "passes", ())} - {0}
        for sums in sorted(counts):
            constants = {"SUMS": sums, "BLOCK": reductions.FINISH_BLOCK}
            kernel = reductions.finish_sums_kernel
            for part, wide in (("", {}), ("_first", {"sums_ptr": "*fp64"}), ("_second", {"partials_ptr": "*fp64"})):
                name, arguments = f"finish_sums/{sums}{part}", {**TABLES, **wide}
                yield Variant(name, "reduction", None, "float32", kernel, constants, arguments=arguments)
        for name, count, guarded, clipped in WORDS:
            constants = {"COUNT": count, "GUARDED": guarded, "CLIPPED": clipped}
            yield Variant(name, "reduction", None, "float32", words.words_kernel, constants, arguments=TABLES)


def _matrix_variants(storages: Sequence[str], capability: int) -> Iterator[Variant]:
    """The matrix kernels by tile size and layout, with masks; other launches leave these out."""
    from ..kernels import householder, symmetric, tf32
    from ..kernels.tiles import tilings

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
