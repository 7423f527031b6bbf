"""Loops over the elements of a piece around a rule's functions: one FUNCTION each, generated and compiled on demand.

Every loop takes `(pointers, numbers, count, sums)`: the addresses of its streams and then of room for the terms of its
sums, elements that follow each other in memory; float64 numbers, a row first; how many elements; and where the sums are
added, float64. Streams do not overlap, so that the compiler makes vector code of any rule.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import native
from .build import address_of, generated
from .halves import HALVES
from .rules import fingerprint, on_host


class Stream(NamedTuple):
    """One stream of a loop: its name in the body, and its type, that of the rule's numbers unless it is another."""

    name: str
    kind: str = "real"


@functools.cache
def rule_loop(
    rule: Any, formats: tuple[str, ...], written: tuple[bool, ...], scalars: int, sums: int, double: bool
) -> int:
    """θ, g and the slots through an elementwise rule, whose row has so many scalars; the gradient's factor follows.

    Of each of these streams, the gradient among them: `formats` are the 16-bit ones that are converted here, or nothing
    for numbers that the rule computes with; `written`, whether the pass stores it.
    """
    names = ["param", "grad", *(f"slot{i}" for i in range(len(formats) - 2))]
    param, grad, *slots = (
        f"from_{form}({name}[i])" if form else f"{name}[i]" for name, form in zip(names, formats, strict=True)
    )
    state = "".join(f"{value}, " for value in slots)
    body = [f"result = rule({param}, {grad} * more0, ({state}), hyper)"]
    results = ["[0]", "", *(f"[1][{i}]" for i in range(len(slots)))]
    for name, form, place, stored in zip(names, formats, results, written, strict=True):
        if stored:
            value = f"exactly(result{place}, real)"
            body.append(f"{name}[i] = to_{form}({value})" if form else f"{name}[i] = {value}")
    body += [f"term{i}[i] = exactly(result[2][{i}], real)" for i in range(sums)]
    streams = [Stream(name, "uint16" if form else "real") for name, form in zip(names, formats, strict=True)]
    return _loop({"rule": rule}, streams, body, scalars=scalars, more=1, sums=sums, double=double)


@functools.cache
def square_loop(square: Any, scalars: int, double: bool) -> int:
    """A row's squares, added to the sums of its columns and summed up; the gradient's factor follows the row."""
    body = ["term0[i] = exactly(square(grad[i] * more0, hyper), real)", "columns[i] += term0[i]"]
    streams = [Stream("grad"), Stream("columns")]
    return _loop({"square": square}, streams, body, scalars=scalars, more=1, sums=1, double=double)


@functools.cache
def moments_loop(accumulate: Any, scalars: int, double: bool) -> int:
    """Variances and their factors from sums of squares, whose count follows the row; sums up the variances."""
    body = [
        "result = accumulate(variance[i], real(total[i]) / more0, hyper)",
        "variance[i] = exactly(result[0], real)",
        "factor[i] = exactly(result[1], real)",
        "term0[i] = variance[i]",
    ]
    streams = [Stream("variance"), Stream("total", "float64"), Stream("factor", "float64")]
    return _loop({"accumulate": accumulate}, streams, body, scalars=scalars, more=1, sums=1, double=double)


@functools.cache
def norms_loop(direction: Any, scalars: int, double: bool) -> int:
    """Adds u² and θ² of a part of a row to those of its columns; behind the row the gradient's factor, the row's, and
    mean(R).
    """
    body = [
        "update = exactly(direction(grad[i] * more0, more1, factor[i], more2, hyper), real)",
        "update_sq[i] += update * update",
        "param_sq[i] += param[i] * param[i]",
    ]
    streams = [Stream(name) for name in ("param", "grad", "factor", "update_sq", "param_sq")]
    return _loop({"direction": direction}, streams, body, scalars=scalars, more=3, sums=0, double=double)


@functools.cache
def update_loop(direction: Any, update: Any, scalars: int, double: bool) -> int:
    """The new θ of a part of a row; behind what `norms_loop` has, the sums of u² and θ² and the count of elements."""
    step = "direction(grad[i] * more0, more1, factor[i], more2, hyper)"
    body = [f"param[i] = exactly(update(param[i], {step}, more3, more4, more5, hyper), real)"]
    streams = [Stream("param"), Stream("grad"), Stream("factor")]
    functions = {"direction": direction, "update": update}
    return _loop(functions, streams, body, scalars=scalars, more=6, sums=0, double=double)


@functools.cache
def sum_function(double: bool) -> int:
    """`(values, sum, count, _)`, the last of no meaning: adds values to a float64 sum."""
    lines = [
        "def entry_KEY(values_at, sum_at, count, nothing):",
        "    pointer(sum_at, float64)[0] += total(pointer(values_at, real), count)",
    ]
    return _entry(lines, {}, double=double)


@functools.cache
def row_function(scalars_of: Any, hypers: int, counters: int, scalars: int) -> int:
    """`(hyper, step, counters, row)`, addresses of float64 numbers: computes a row, and carries the counters on."""
    row, own = ("".join(f"{name}{i}, " for i in range(count)) for name, count in (("r", scalars), ("c", counters)))
    lines = [
        "def entry_KEY(hyper_at, step_at, counters_at, row_at):",
        "    hyper, step = pointer(hyper_at, float64), pointer(step_at, float64)",
        "    counters, row = pointer(counters_at, float64), pointer(row_at, float64)",
        f"    ({row}), ({own}) = scalars_of({_tuple('hyper', hypers)}, step[0], {_tuple('counters', counters)})",
        *(f"    row[{i}] = r{i}" for i in range(scalars)),
        *(f"    counters[{i}] = c{i}" for i in range(counters)),
    ]
    return _entry(lines, {"scalars_of": scalars_of}, double=True)


def _loop(
    functions: Mapping[str, Any], streams: Sequence[Stream], body: Sequence[str], *, double: bool, **sizes: int
) -> int:
    """The loop with this body, in which `hyper` is the row and `more0` and so on are the numbers behind it."""
    scalars, more, sums = sizes["scalars"], sizes["more"], sizes["sums"]
    terms = [Stream(f"term{i}") for i in range(sums)]
    names = [stream.name for stream in (*streams, *terms)]
    kinds = [stream.kind for stream in (*streams, *terms)]
    taken = "".join(f"pointer(pointers[{i}], {kind}), " for i, kind in enumerate(kinds))
    lines = [
        "@njit(error_model='numpy')",
        f"def loop_KEY({', '.join(names)}, numbers, count):",
        "    nothing_overlaps()",
        f"    hyper = {_tuple('numbers', scalars)}",
        *(f"    more{i} = real(numbers[{scalars + i}])" for i in range(more)),
        "    for i in range(count):",
        *(f"        {line}" for line in body),
        "",
        "def entry_KEY(pointers_at, numbers_at, count, sums_at):",
        "    pointers, sums = pointer(pointers_at, int64), pointer(sums_at, float64)",
        f"    loop_KEY({taken}pointer(numbers_at, float64), count)",
        *(f"    sums[{i}] += total(pointer(pointers[{len(streams) + i}], real), count)" for i in range(sums)),
    ]
    return _entry(lines, functions, double=double)


def _entry(lines: Sequence[str], functions: Mapping[str, Any], *, double: bool) -> int:
    """The address of the function in a module of these lines, which calls JIT functions by these names."""
    scope = {name: getattr(native, name) for name in ("njit", "pointer", "nothing_overlaps", "exactly", "total")}
    scope |= {name: getattr(native, name) for name in ("int64", "float64", "uint16")}
    scope["real"] = native.float64 if double else native.float32
    scope |= {
        f"{way}_{name}": one for name, pair in HALVES.items() for way, one in zip(("from", "to"), pair, strict=True)
    }
    scope |= {name: on_host(function, double) for name, function in functions.items()}
    name = "-".join(function.fn.__name__ for function in functions.values()) or "sum"
    text = f'"""Generated by rlx-gpu: {name}, in {"float64" if double else "float32"}."""\n' + "\n".join(lines) + "\n"
    depends_on = " ".join(map(fingerprint, functions.values()))
    try:
        return address_of(generated(name, text, scope, depends_on))
    except Exception as error:
        error.add_note(f"while compiling {name} for the CPU")
        raise


def _tuple(name: str, count: int) -> str:
    """The first elements of `name`, in the format that the rule computes in."""
    return f"({''.join(f'real({name}[{i}]), ' for i in range(count))})"
