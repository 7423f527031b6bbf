"""What every kernel compiles to for an architecture, without a GPU: the body of `rlx-gpu kernels`."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .table import TABLE, Algorithm

COLUMNS = (
    "name",
    "family",
    "optimizer",
    "dtype",
    "registers",
    "spill_bytes",
    "shared_bytes",
    "vector_bits",
    "bytes_per_param",
)
# Codecs of parameter, gradient and every slot, by the name in the dtype column.
STORAGES = {
    "float32": ("float32", "float32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16", "bfloat16"),
    "bfloat16_stochastic": ("bfloat16_stochastic", "bfloat16", "bfloat16"),
    "bfloat16_float32": ("bfloat16", "bfloat16", "float32"),
    "float16": ("float16", "float16", "float32"),
}
DISASSEMBLERS = 2  # nvdisasm takes as long as a compilation, and runs beside the next one
TABLE_WIDTH = 126  # of the longest names
# The types of the kernels' arguments, by name; the others point to float32.
_ARGUMENTS = {
    "table_ptr": "*i64",
    "ranges_ptr": "*i64",
    "chunks_ptr": "*i32",
    "tiles_ptr": "*i32",
    "vectors_ptr": "*i32",
    "skipped_ptr": "*i32",
    "known": "i32",
}


@dataclass(frozen=True)
class Variant:
    """One kernel as it is launched.

    Args:
        name: unique with `dtype`; the launches of one step are numbered or named behind a slash.
        family: "elementwise", "factored" or "reduction".
        optimizer: as in `rlx_gpu.table`; None for a kernel that serves all.
        dtype: a key of STORAGES.
        kernel: the JIT function.
        constants: its compile-time arguments.
        block: a `rlx_gpu.traffic.Block`, or None without parameter-sized streams.
    """

    name: str
    family: str
    optimizer: str | None
    dtype: str
    kernel: Any
    constants: dict[str, Any]
    block: Any = None


def variants(optimizers: Iterable[str] | None = None, dtypes: Iterable[str] | None = None) -> list[Variant]:
    """Every kernel variant, or those of some optimizers and storages.

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
    chosen = list(TABLE) if optimizers is None else [_find(name, TABLE, "optimizer") for name in optimizers]
    storages = list(STORAGES) if dtypes is None else [_find(name, STORAGES, "dtype") for name in dtypes]
    found = [variant for name in chosen for dtype in storages for variant in _optimizer_variants(TABLE[name], dtype)]
    return found if optimizers is not None else [*found, *_reduction_variants(storages)]


def _find(name: str, known: Iterable[str], what: str) -> str:
    for candidate in known:
        if candidate.lower() == name.lower():
            return candidate
    raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")


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
        yield Variant(name, family, optimizer, dtype, elementwise.fused_step_kernel, constants, block)


def _factored_launches(spec: Any, optimizer: str, dtype: str, scalars: int) -> Iterator[Variant]:
    from .kernels import factored
    from .traffic import Block

    tile = (factored.TILE_ROWS, factored.TILE_COLS)
    parts = Block((factored.PART_ROWS, tile[1]), (1, tile[1]), repeats=tile[0] // factored.PART_ROWS)
    kernels = {
        "sums": (factored.factored_sums_kernel, Block(tile, tile)),
        "moments": (factored.factored_moments_kernel, None),
        "row_mean": (factored.factored_row_mean_kernel, None),
        "norms": (factored.factored_step_kernel, parts),
        "update": (factored.factored_step_kernel, parts),
    }
    for launch, constants in factored.constants(spec, _codecs(dtype, spec.slots), scalars).items():
        kernel, block = kernels[launch]
        yield Variant(f"{spec.name}/{launch}", "factored", optimizer, dtype, kernel, constants, block)


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
            yield Variant(f"finish_sums/{sums}", "reduction", None, "float32", reductions.finish_sums_kernel, constants)
        yield Variant("guard", "reduction", None, "float32", reductions.guard_kernel, {})


def capability(arch: str) -> int:
    """90 for "sm_90".

    Raises:
        ValueError: not of this form.
    """
    match = re.fullmatch(r"sm_(\d{2,3})", arch)
    if match is None:
        raise ValueError(f"arch must look like sm_90, got {arch!r}")
    return int(match[1])


def compile_variant(variant: Variant, arch: str) -> Any:
    """Triton's compiled kernel, as a launch with 16-byte aligned tables would compile it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from .kernels.arithmetic import LAUNCH_OPTIONS

    names = [name for name in variant.kernel.arg_names if name not in variant.constants]
    signature = {name: _ARGUMENTS.get(name, "*fp32") for name in names}
    aligned = [index for index, name in enumerate(names) if signature[name].startswith("*")]
    attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
    source = ASTSource(variant.kernel, signature, constexprs=variant.constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability(arch), 32), options=LAUNCH_OPTIONS)


def measure(variant: Variant, compiled: Any) -> dict[str, Any]:
    """One row of the report, read from the compiled code.

    Raises:
        UnexpectedCode: the code holds something that could be misread.
    """
    from . import sass
    from .traffic import traffic

    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = sass.resources(str(cubin))
        instructions, local = sass.machine_accesses(sass.disassemble(str(cubin)), compiled.asm["ptx"])
    if local and not usage.local_bytes:
        raise sass.UnexpectedCode(f"{local} instructions touch local memory, but the kernel is said to have none")
    accesses = sass.ir_accesses(compiled.asm["ttgir"])
    moved = traffic(accesses, instructions, variant.block, 32 * compiled.metadata.num_warps)
    values = (
        variant.name,
        variant.family,
        variant.optimizer,
        variant.dtype,
        usage.registers,
        usage.local_bytes,
        usage.shared_bytes + compiled.metadata.shared,
        moved.vector_bits,
        moved.bytes_per_param,
    )
    return dict(zip(COLUMNS, values, strict=True))


def rows(arch: str, chosen: Iterable[Variant]) -> Iterator[dict[str, Any]]:
    """The rows of these variants, in order, as they are ready."""
    with ThreadPoolExecutor(DISASSEMBLERS) as pool:
        waiting: list[Future[dict[str, Any]]] = []
        for variant in chosen:
            try:
                waiting.append(pool.submit(_measure_named, variant, compile_variant(variant, arch)))
            except Exception as error:
                error.add_note(f"while compiling {variant.name} {variant.dtype} for {arch}")
                raise
            while waiting and waiting[0].done():
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _measure_named(variant: Variant, compiled: Any) -> dict[str, Any]:
    try:
        return measure(variant, compiled)
    except Exception as error:
        error.add_note(f"in {variant.name} {variant.dtype}")
        raise


def report(
    arch: str, optimizers: Iterable[str] | None = None, dtypes: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """Compiles every kernel variant for an architecture such as "sm_90": one dictionary each, with the keys COLUMNS.

    Args:
        arch: the architecture.
        optimizers: names, in any case; None for all, and the kernels that serve all.
        dtypes: keys of STORAGES; None for all.

    Keys:
        name, family, optimizer, dtype: see `Variant`.
        registers: of one thread.
        spill_bytes: of stack and local memory a thread has.
        shared_bytes: of one block.
        vector_bits: of the narrowest access to a parameter-sized stream in the full-block path; None without one.
        bytes_per_param: read and written in the full-block path.

    Raises:
        ValueError: an unknown architecture, optimizer or dtype.
        RuntimeError: Triton is missing or interprets, or the compiled code cannot be read with certainty.
    """
    capability(arch)
    return list(rows(arch, variants(optimizers, dtypes)))


def run(arch: str, optimizer: str | None, dtype: str | None, as_json: bool) -> int:
    """`rlx-gpu kernels`: prints the report as a table or as JSON; the exit status."""
    try:
        capability(arch)
        chosen = variants(optimizer and [optimizer], dtype and [dtype])
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if as_json:
        print(json.dumps(list(rows(arch, chosen)), indent=1))
    else:
        print_report(arch, rows(arch, chosen), len(chosen))
    return 0


def print_report(arch: str, measured: Iterable[dict[str, Any]], total: int) -> None:
    """Prints rows as a table, with a progress bar while they come in."""
    from rich import box
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    bar = track(measured, f"Compiling for {arch}", total=total, console=Console(stderr=True), transient=True)
    table = Table(title=f"Kernels for {arch}", caption="— serves every optimizer, or streams over no parameters")
    table.box = box.SIMPLE_HEAD
    for column in COLUMNS:
        table.add_column(column.replace("_", "\n"), justify="left" if column in COLUMNS[:4] else "right", no_wrap=True)
    for row in bar:
        table.add_row(*("—" if row[column] is None else str(row[column]) for column in COLUMNS))
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)  # better wrapped by a narrow terminal than cut off
    console.print(table)
