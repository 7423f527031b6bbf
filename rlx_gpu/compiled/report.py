"""What every kernel compiles to for an architecture, without a GPU: the body of `rlx-gpu kernels`."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..kernels.formats import STORAGES
from ..naming import spelled
from .variants import Variant, variants

if TYPE_CHECKING:
    from .sass import Resources

__all__ = [
    "COLUMNS",
    "STORAGES",
    "Variant",
    "architectures",
    "capability",
    "compile_variant",
    "measure",
    "report",
    "rows",
    "variants",
]

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
OLDEST_CAPABILITY = 80  # the kernels are made for this and newer
FIRST_BLACKWELL = 100  # from here on Triton compiles with a ptxas of its own
DISASSEMBLERS = 2  # nvdisasm takes as long as a compilation, and runs beside the next one


def capability(arch: str) -> int:
    """90 for "sm_90".

    Raises:
        ValueError: not of this form.
    """
    match = re.fullmatch(r"sm_(\d{2,3})", arch)
    if match is None:
        raise ValueError(f"arch must look like sm_90, got {arch!r}")
    return int(match[1])


def architectures() -> list[str]:
    """The architectures that the kernels are made for and that Triton's ptxas, or its ptxas-blackwell, knows."""
    import triton

    tools = triton.knobs.nvidia.ptxas, triton.knobs.nvidia.ptxas_blackwell
    older, newer = (sorted({int(number) for number in re.findall(r"'sm_(\d+)'", _help(tool.path))}) for tool in tools)
    known = [number for number in older if OLDEST_CAPABILITY <= number < FIRST_BLACKWELL]
    known += [number for number in newer if number >= FIRST_BLACKWELL]
    return [f"sm_{number}" for number in known]


def _help(program: str) -> str:
    return subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout


def selection(arch: str, optimizers: Collection[str], dtypes: Collection[str]) -> list[Variant]:
    """The variants to compile for an architecture.

    Raises:
        ValueError: an unknown architecture, optimizer or dtype.
        RuntimeError: Triton is missing or interprets.
    """
    found = variants(optimizers, dtypes, capability(arch))
    spelled(arch, architectures(), "supported architecture")
    return found


def compile_variant(variant: Variant, arch: str) -> Any:
    """Triton's compiled kernel, as a launch with 16-byte aligned tables compiles it: both find it in one cache."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ..kernels.arithmetic import LAUNCH_OPTIONS

    signature: dict[str, str] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, param in enumerate(variant.kernel.params):
        kind = variant.arguments.get(param.name) or ("*fp32" if param.name.endswith("_ptr") else "i32")
        signature[param.name] = "constexpr" if param.name in variant.constants else kind
        aligned = signature[param.name].startswith("*") and not param.do_not_specialize_on_alignment
        if not param.do_not_specialize:
            attributes[index,] = [["tt.divisibility", 16]] if aligned else []
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
    return list(rows(arch, selection(arch, optimizers, dtypes)))


def run(arch: str, optimizers: Collection[str], dtypes: Collection[str], as_json: bool) -> int:
    """`rlx-gpu kernels`: prints the report as a table or as JSON; the exit status."""
    try:
        chosen = selection(arch, optimizers, dtypes)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    measured = rows(arch, chosen)
    try:
        with redirect_stdout(io.StringIO()):  # Triton prints all of a kernel that ptxas refuses
            done = list(measured if as_json else with_progress(measured, arch, len(chosen)))
    except Exception as error:  # a compiler can fail in any way
        print(f"error: {'; '.join([*getattr(error, '__notes__', ()), str(error).strip()])}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(done, indent=1))
    else:
        print_report(arch, done)
    return 0


def with_progress(measured: Iterable[dict[str, Any]], arch: str, total: int) -> Iterator[dict[str, Any]]:
    """The rows, with a progress bar on the standard error while they come in."""
    from rich.console import Console
    from rich.progress import Progress

    # What is printed meanwhile stays where it is sent.
    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        yield from progress.track(measured, total=total, description=f"Compiling for {arch}")


def print_report(arch: str, measured: Iterable[dict[str, Any]]) -> None:
    """Prints rows as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ..terminal import print_whole

    table = Table(title=f"Kernels for {arch}", caption="— serves every optimizer, or streams over no parameters")
    table.box = box.SIMPLE_HEAD
    for column in COLUMNS:
        table.add_column(column.replace("_", "\n"), justify="left" if column in COLUMNS[:4] else "right", no_wrap=True)
    for row in measured:
        table.add_row(*("—" if row[column] is None else str(row[column]) for column in COLUMNS))
    print_whole(Console(), table)
