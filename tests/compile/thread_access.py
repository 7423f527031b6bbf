"""Loads that several threads of a block repeat, read from Triton's GPU IR.

Triton lays a tensor that is smaller than a block, or a row of a larger one, into several threads at once: all of them
load an element, one of them stores it, and nothing has the others load before it does. `repeated` finds such loads from
memory that the kernel stores to as well. Memory is known by the arguments that an address is computed from: different
arguments are taken for different memory. And what is stored is taken to be computed from what lay in its place: then
the only thread that loads an element has done so before any thread stores it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from rlx_gpu.compiled.sass import UnexpectedCode

IN_TABLES = "addresses in tables"
SAME_MEMORY = {"c_ptr": "out_ptr"}  # what a caller may give twice
_NUMBERS = r"\[([\d, ]+)\]"
_BLOCKED = re.compile(
    rf"#ttg\.blocked<\{{sizePerThread = {_NUMBERS}, threadsPerWarp = {_NUMBERS}, warpsPerCTA = {_NUMBERS}, "
    rf"order = {_NUMBERS}\}}>"
)
_SLICE = re.compile(r"#ttg\.slice<\{dim = (\d+), parent = (.*)\}>")
_POINTER = re.compile(r"(?:tensor<((?:\d+x)+))?!tt\.ptr<\w+>(?:, (#.*?)>(?: -> .*)?)?$")
_MEMORY = re.compile(r"(?:tt|ttg|ttng)\.(?!addptr)\w*(?:load|store|atomic|gather|scatter|copy|descriptor)\w*")
_GLOBAL = {"tt.load": "load", "tt.store": "store", "ttg.async_copy_global_to_local": "load"}
_ON_CHIP = {"ttg.local_load", "ttg.local_store", "ttng.tmem_load", "ttng.tmem_store", "ttng.tmem_copy"}
_LINE = re.compile(r'(?:(%[\w.]+)(?::\d+)? = )?"?([\w.]*)"?')


@dataclass(frozen=True)
class Access:
    """One load or store of global memory: the arguments that its address is computed from, and the tensor's shape.

    `repeated` says that several threads hold an element, as all do that of a scalar.
    """

    op: str
    memory: frozenset[str]
    shape: tuple[int, ...]
    repeated: bool


def repeated(accesses: Iterable[Access]) -> set[tuple[str, tuple[int, ...]]]:
    """Memory and shape of loads that several threads repeat, from memory that is stored to."""
    accesses = list(accesses)
    stored = set[str]().union(*(access.memory for access in accesses if access.op == "store"))
    loads = [access for access in accesses if access.op == "load" and access.repeated]
    return {(memory, load.shape) for load in loads for memory in load.memory & stored}


def accesses(ttgir: str) -> list[Access]:
    """Every load and store of global memory of a module in Triton's GPU IR.

    Raises:
        UnexpectedCode: a memory operation, an address or a layout that this reader does not know.
    """
    layouts: dict[str, str] = {}
    origins: dict[str, frozenset[str]] = {}  # of the values in sight, whose names are used again elsewhere
    found = []
    for line in ttgir.splitlines():
        text = line.split(" loc(")[0].strip()
        if match := re.match(r"(#\w+) = (#ttg?\..*)", text):
            layouts[match[1]] = match[2]
        elif text.startswith("tt.func"):
            names = re.findall(r"%(\w+): !tt\.ptr<", line)
            origins = {f"%{name}": frozenset({SAME_MEMORY.get(name, name)}) for name in names}
        elif match := _LINE.match(text):
            op, operands = match[2], re.findall(r"%[\w.]+", text[match.end() :])
            if _MEMORY.fullmatch(op) and op not in _ON_CHIP:
                found.append(_access(op, text, origins.get(operands[0], frozenset()), layouts))
            for inner, first in re.findall(r"[(,] ?(%[\w.]+) = (%[\w.]+)", text):  # what a loop carries
                origins[inner] = origins.get(first, frozenset())
            if match[1]:
                origins[match[1]] = _origin(op, [origins.get(operand, frozenset()) for operand in operands])
    return found


def _origin(op: str, operands: list[frozenset[str]]) -> frozenset[str]:
    """What the result of an operation points to, or will once it is made a pointer: loaded numbers point nowhere."""
    if op in _GLOBAL or op in _ON_CHIP:
        return frozenset()
    return frozenset({IN_TABLES} if op == "tt.int_to_ptr" else ()).union(*operands)


def _access(op: str, text: str, memory: frozenset[str], layouts: dict[str, str]) -> Access:
    match = _POINTER.match(text.rsplit(" : ", 1)[-1])
    if op not in _GLOBAL or not memory or match is None:
        raise UnexpectedCode(f"a memory operation that this reader does not know: {text}")
    shape = tuple(int(extent) for extent in (match[1] or "").split("x") if extent)
    layout = re.sub(r"#\w+\b(?!\.)", lambda alias: layouts.get(alias[0], alias[0]), match[2] or "")
    return Access(_GLOBAL[op], memory, shape, not shape or holders(layout, shape) > 1)


def holders(layout: str, shape: tuple[int, ...]) -> int:
    """How many threads hold each element of a tensor."""
    extents: list[int | None] = [*shape]
    while match := _SLICE.fullmatch(layout):  # every thread along that axis holds what the others do
        extents.insert(int(match[1]), None)
        layout = match[2]
    blocked = _BLOCKED.fullmatch(layout)
    if blocked is None:
        raise UnexpectedCode(f"a layout that this reader does not know: {layout}")
    each, lanes, warps, _ = ([int(number) for number in group.split(",")] for group in blocked.groups())
    along = [lane * warp for lane, warp in zip(lanes, warps, strict=True)]
    # Along an axis threads take `each` elements in turn; where these are too few, the turns begin anew.
    taking = [
        1 if extent is None else min(threads, max(1, extent // size))
        for extent, threads, size in zip(extents, along, each, strict=True)
    ]
    return prod(along) // prod(taking)
