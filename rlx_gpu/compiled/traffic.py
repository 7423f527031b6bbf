"""Which memory accesses of a compiled kernel stream over its parameters, how wide they are and how much they move.

The full-block path is recognised by what sets it apart at every stage: its accesses carry no mask. Triton's IR says
which accesses there are, each with its source line; the machine code must hold the same ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

from .sass import Access, Instruction, Line, UnexpectedCode


@dataclass(frozen=True)
class Block:
    """How a kernel walks over parameters."""

    full: tuple[int, ...]  # the shape of one unmasked block, a parameter an element
    tail: tuple[int, ...]  # of one masked block
    repeats: int = 1  # of the loop over full blocks in one program


@dataclass(frozen=True)
class Traffic:
    """Bits of the narrowest access to a parameter-sized stream (None without one), and bytes moved a parameter."""

    vector_bits: int | None
    bytes_per_param: float


def traffic(accesses: list[Access], instructions: list[Instruction], block: Block | None, threads: int) -> Traffic:
    """The full-block path's traffic; `block` is None for a kernel without parameter-sized streams.

    Raises:
        UnexpectedCode: the machine code does not hold exactly the accesses of the IR, or the tail path streams over
            other buffers than the full path.
    """
    known = {(access.op, access.line) for access in accesses}
    for instruction in instructions:
        if (instruction.op, instruction.line) not in known:
            raise UnexpectedCode(f"a memory instruction without an access in the IR: {instruction}")
    full = [access for access in accesses if access.shape and not access.masked]
    if block is None:
        if full:
            raise UnexpectedCode(f"unmasked blocks in a kernel without parameter-sized streams: {full[0]}")
        return Traffic(None, 0)
    _check_tail(accesses, instructions, block)
    ambiguous = {access.line for access in full} & {access.line for access in accesses if access not in full}
    if ambiguous:
        raise UnexpectedCode(f"one source line loads or stores with and without a mask: {sorted(ambiguous)}")

    bits, unrolled = [], set()
    for key in {(access.op, access.line) for access in full}:
        group = [access for access in full if (access.op, access.line) == key]
        found = [instruction for instruction in instructions if (instruction.op, instruction.line) == key]
        unrolled.add(_unrolling(key, group, found, threads))
        if any(access.shape == block.full for access in group):
            bits += [instruction.bits for instruction in found]
    if len(unrolled) != 1 or block.repeats % max(unrolled):
        raise UnexpectedCode(f"accesses repeated {unrolled} times, in a loop that runs {block.repeats} times")
    moved = sum(prod(access.shape) * access.element_bits for access in full)
    per_param = moved / 8 / prod(block.full)
    return Traffic(min(bits), int(per_param) if per_param.is_integer() else per_param)


def _check_tail(accesses: list[Access], instructions: list[Instruction], block: Block) -> None:
    """The masked path must stream over what the unmasked one does, an element at a time.

    A masked access in the full path would be missed otherwise, and an alignment claimed for the full path that reaches
    the masked one would fault on unaligned tensors.
    """

    def kinds(shape: tuple[int, ...], masked: bool) -> Counter[tuple[str, int]]:
        chosen = [access for access in accesses if access.shape == shape and access.masked == masked]
        return Counter((access.op, access.element_bits) for access in chosen)

    full, tail = kinds(block.full, masked=False), kinds(block.tail, masked=True)
    if not full or full != tail:
        raise UnexpectedCode(f"the full-block path streams over {dict(full)}, the tail over {dict(tail)}")
    tails = {(access.op, access.line) for access in accesses if access.shape == block.tail and access.masked}
    widest = {key: max(access.element_bits for access in accesses if (access.op, access.line) == key) for key in tails}
    for instruction in instructions:
        if instruction.bits > widest.get((instruction.op, instruction.line), instruction.bits):
            raise UnexpectedCode(f"a tail access wider than an element: {instruction}")


def _unrolling(key: tuple[str, Line], group: list[Access], found: list[Instruction], threads: int) -> int:
    """How often the machine code repeats these accesses."""
    expected = sum(prod(access.shape) * access.element_bits for access in group) / threads
    moved = sum(instruction.bits for instruction in found)
    if any(instruction.predicated for instruction in found):
        raise UnexpectedCode(f"a predicated {key[0]} at {key[1]} in the full-block path")
    if not moved or moved % expected:
        raise UnexpectedCode(f"{key[0]}s at {key[1]} move {moved} bits a thread, the IR says {expected}")
    return int(moved / expected)
