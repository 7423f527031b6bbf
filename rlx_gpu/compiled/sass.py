"""Reads compiled kernels: memory accesses in Triton's IR and in the machine code, registers and memory.

Nothing is guessed: what a reader does not understand raises `UnexpectedCode`.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

Line = tuple[str, int]  # file, line


class UnexpectedCode(RuntimeError):
    """Compiled code in which a reader could go wrong."""


@dataclass(frozen=True)
class Access:
    """One `tt.load` or `tt.store` of Triton's GPU IR; `shape` is empty for a scalar."""

    op: str
    shape: tuple[int, ...]
    element_bits: int
    masked: bool
    line: Line


@dataclass(frozen=True)
class Instruction:
    """One global-memory instruction of the machine code: "load" or "store", and the bits that one thread moves."""

    op: str
    bits: int
    predicated: bool
    line: Line


@dataclass(frozen=True)
class Resources:
    """What one thread and one block of a kernel take."""

    registers: int
    local_bytes: int
    shared_bytes: int


_ALIAS = re.compile(r"^(#loc\d*) = loc\((.*)\)$")
_FILE = re.compile(r'^"(.*)":(\d+):\d+$')
_NAMED = re.compile(r'^(?:"[^"]*"|callsite)\((#loc\d*)(?: at #loc\d*)?\)$')
_MEMORY_OP = re.compile(r"\b(?:tt|ttg|ttng)\.(?!addptr)\w*(?:load|store|atomic|gather|scatter|copy|descriptor)\w*")
_ACCESS = re.compile(
    r"\btt\.(load|store) ((?:%[\w.#:]+(?:, )?)+)(?: [\w =]+)?(?: \{[^}]*\})? : "  # operands, attributes
    r"(?:tensor<((?:\d+x)+))?!tt\.ptr<(?:f|bf|i|ui)(\d+)>"
)


def ir_accesses(ttgir: str) -> list[Access]:
    """Every load and store of a module in Triton's GPU IR."""
    aliases = {match[1]: match[2] for match in map(_ALIAS.match, ttgir.splitlines()) if match}
    accesses = []
    for text in ttgir.splitlines():
        if text.startswith("#") or not _MEMORY_OP.search(text):
            continue
        match = _ACCESS.search(text)
        where = re.search(r"loc\((#loc\d*)\)$", text)
        if match is None or where is None:
            raise UnexpectedCode(f"a memory operation that this reader does not know: {text.strip()}")
        op, operands, shape, bits = match.groups()
        extents = tuple(int(extent) for extent in (shape or "").split("x") if extent)
        masked = operands.count("%") > {"load": 1, "store": 2}[op]
        accesses.append(Access(op, extents, int(bits), masked, _resolve(where[1], aliases)))
    return accesses


def _resolve(name: str, aliases: dict[str, str]) -> Line:
    """The innermost file and line of a location."""
    while True:
        location = aliases.get(name, "")
        if match := _FILE.match(location):
            return match[1], int(match[2])
        if not (match := _NAMED.match(location)):
            raise UnexpectedCode(f"a location that this reader does not know: {name} = {location}")
        name = match[1]


_FILE_NUMBER = re.compile(r'^\t\.file\t(\d+) "(.*)"')
_LOC = re.compile(r"^\t\.loc\t(\d+) (\d+) ")
_PTX_MEMORY = re.compile(r"^\s*(?:@!?%p\d+ )?(ld|st|ldu|atom|red|cp|prefetch|tensormap|wgmma|tcgen05)\.(\S+)")
_PTX_GLOBAL = re.compile(r"^(?:volatile\.|relaxed\.|weak\.)?global\b")
_OPS = {"ld": "load", "st": "store"}


def ptx_accesses(ptx: str) -> dict[int, tuple[str, Line]]:
    """The op and the source line of every global access, by its line in the PTX."""
    lines = ptx.splitlines()
    files = {match[1]: match[2] for match in map(_FILE_NUMBER.match, lines) if match}
    accesses: dict[int, tuple[str, Line]] = {}
    where: Line = ("", 0)
    assembly: bool | None = None  # None outside inline assembly, inside whether its location is known
    for number, text in enumerate(lines, start=1):
        if "// begin inline asm" in text:
            assembly = False
        elif "// end inline asm" in text:
            assembly = None
        # Newer LLVM counts the lines inside inline assembly as lines of the source file: only the first is true.
        elif (loc := _LOC.match(text)) and not assembly:
            where = files[loc[1]], int(loc[2])
            assembly = None if assembly is None else True
        elif match := _PTX_MEMORY.match(text):
            op, rest = match.groups()
            if op in _OPS and _PTX_GLOBAL.match(rest):
                accesses[number] = _OPS[op], where
            elif not rest.startswith(("param", "shared", "local")):
                raise UnexpectedCode(f"a memory instruction that this reader does not know: {text.strip()}")
    return accesses


_DIRECTIVE = re.compile(r'^\s*//## File "\.nv_debug_ptx_txt", line (\d+)')
_OPCODE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)((?:\.\w+)*)\s")
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
_LOCAL = {"LDL", "STL"}
_GLOBAL = {"LDG": "load", "STG": "store"}
# Other ways to reach global memory: generic, asynchronous and bulk copies, atomics.
_UNREAD = {"LD", "ST", "LDGSTS", "ATOM", "ATOMG", "RED", "REDG", "UBLKCP", "UTMALDG", "UTMASTG", "UTMAREDG"}


def machine_accesses(sass: str, ptx: str) -> tuple[list[Instruction], int]:
    """Every global-memory instruction of `disassemble`'s output, and how many touch local memory."""
    sources = ptx_accesses(ptx)
    instructions: list[Instruction] = []
    local, count, number = 0, 0, 0
    for text in sass.splitlines():
        if directive := _DIRECTIVE.match(text):
            number = int(directive[1])
            continue
        match = _OPCODE.match(text)
        if match is None:
            continue
        count += 1
        predicate, opcode, suffixes = match.groups()
        local += opcode in _LOCAL
        if opcode in _UNREAD:
            raise UnexpectedCode(f"a memory instruction that this reader does not know: {text.strip()}")
        if opcode in _GLOBAL:
            bits = [_WIDTHS[suffix] for suffix in suffixes.split(".") if suffix in _WIDTHS] or [32]
            op, line = sources.get(number, ("", ("", 0)))
            if len(bits) != 1 or op != _GLOBAL[opcode]:
                raise UnexpectedCode(f"not the access of line {number} of the PTX, or of two widths: {text.strip()}")
            instructions.append(Instruction(op, bits[0], predicate is not None, line))
    if not count:
        raise UnexpectedCode("no instructions in the disassembly")
    return instructions, local


_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def resources(cubin: str) -> Resources:
    """Registers, stack and local bytes a thread, and static shared bytes of the only kernel in a cubin file."""
    import triton

    usages = _USAGE.findall(run_tool(triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin))
    if len(usages) != 1:
        raise UnexpectedCode(f"{len(usages)} kernels in a cubin, not one")
    registers, stack, shared, local = map(int, usages[0])
    return Resources(registers, stack + local, shared)


def disassemble(cubin: str) -> str:
    """The machine code of a cubin file, with the lines of the PTX that it came from."""
    import triton

    # Without its dataflow analysis, which only annotates branches, nvdisasm is a third faster.
    return run_tool(triton.knobs.nvidia.nvdisasm.path, "-c", "-gp", "-ndf", cubin)


def run_tool(*command: str) -> str:
    """The standard output of a tool.

    Raises:
        RuntimeError: it failed; carries what it said.
    """
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return result.stdout
