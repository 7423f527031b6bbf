"""What every kernel compiles to for an architecture, without a GPU: the body of `rlx-gpu kernels`."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compile_variants import STORAGES, Variant, variants

if TYPE_CHECKING:
    from .sass import Resources

__all__ = ["COLUMNS", "STORAGES", "Variant", "capability", "compile_variant", "measure", "report", "rows", "variants"]

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
DISASSEMBLERS = 2  # nvdisasm takes as long as a compilation, and runs beside the next one
TABLE_WIDTH = 126  # of the longest names


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
    signature = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in names}
    signature |= {name: variant.arguments[name] for name in names if name in variant.arguments}
    aligned = [index for index, name in enumerate(names) if signature[name].startswith("*")]
    attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
    source = ASTSource(variant.kernel, signature, constexprs=variant.constants, attrs=attributes)
    options = {**LAUNCH_OPTIONS, **(variant.options or {})}
    return triton.compile(source, target=GPUTarget("cuda", capability(arch), 32), options=options)


@contextmanager
def cubin_file(compiled: Any) -> Iterator[str]:
    """The path of a file with the machine code, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        yield str(cubin)


def measure(variant: Variant, compiled: Any) -> dict[str, Any]:
    """One row of the report, read from the compiled code.

    Raises:
        UnexpectedCode: the code holds something that could be misread.
    """
    from . import sass

    with cubin_file(compiled) as cubin:
        usage = sass.resources(cubin)
        if variant.family == "matrix":  # it streams over nothing: every tile is read many times
            vector_bits = bytes_per_param = None
        else:
            vector_bits, bytes_per_param = _traffic(variant, compiled, sass.disassemble(cubin), usage)
    values = (
        variant.name,
        variant.family,
        variant.optimizer,
        variant.dtype,
        usage.registers,
        usage.local_bytes,
        usage.shared_bytes + compiled.metadata.shared,
        vector_bits,
        bytes_per_param,
    )
    return dict(zip(COLUMNS, values, strict=True))


def _traffic(variant: Variant, compiled: Any, code: str, usage: Resources) -> tuple[int | None, float]:
    """Bits of the narrowest access to a stream, and bytes moved a parameter."""
    from . import sass
    from .traffic import traffic

    instructions, local = sass.machine_accesses(code, compiled.asm["ptx"])
    if local and not usage.local_bytes:
        raise sass.UnexpectedCode(f"{local} instructions touch local memory, but the kernel is said to have none")
    accesses = sass.ir_accesses(compiled.asm["ttgir"])
    moved = traffic(accesses, instructions, variant.block, 32 * compiled.metadata.num_warps)
    return moved.vector_bits, moved.bytes_per_param


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


def report(arch: str, optimizers: Collection[str] = (), dtypes: Collection[str] = ()) -> list[dict[str, Any]]:
    """Compiles every kernel variant for an architecture such as "sm_90": one dictionary each, with the keys COLUMNS.

    Args:
        arch: the architecture.
        optimizers: names, in any case; none for all, and the kernels that serve all.
        dtypes: keys of STORAGES; none for all.

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
    return list(rows(arch, variants(optimizers, dtypes, capability(arch))))


def run(arch: str, optimizers: Collection[str], dtypes: Collection[str], as_json: bool) -> int:
    """`rlx-gpu kernels`: prints the report as a table or as JSON; the exit status."""
    try:
        chosen = variants(optimizers, dtypes, capability(arch))
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
