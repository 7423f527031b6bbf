"""The fused multi-tensor driver: any rule over any storage, one launch for every tensor of a model.

Tables, all on the device (built by `rlx_gpu.launch` with `rlx_gpu.launch_tables`):
    table   int64 [tensors, columns]: the addresses of the streams' buffers (parameter, gradient, slots in order), then
            NUMEL, VECTOR_END (elements below it lie in full aligned blocks), HYPER_ROW and ORIGIN.
    chunks  int32 [programs, 2]: which tensor, which block of BLOCK elements.
    hypers  float32 [rows, scalars + 3]: the rule's scalars, then step, seed's low and high word as int32 bits.
    control float32 [3]: the factor on every gradient, whether to leave everything untouched, and how many rows behind
            HYPER_ROW the hyperparameters lie (only the device knows how many steps it has skipped so far).
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import triton
import triton.language as tl

from .codecs import Codec
from .spec import Pass, RuleSpec

BLOCK = 1024  # 8 elements a thread: one 128-bit access of a 16-bit stream, two of a 32-bit one
TAIL_BLOCK = 128
TAIL_COLUMNS = ("numel", "vector_end", "hyper_row", "origin")


@triton.jit
def _buffers(row_ptr, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """The addresses of one stream's buffers."""
    buffers = ()
    for i in tl.static_range(COUNT):
        buffers = buffers + (tl.load(row_ptr + FIRST + i),)
    return buffers


@triton.jit
def stream_addresses(row_ptr, STREAMS: tl.constexpr):
    """One tuple of buffer addresses per stream."""
    addresses = ()
    for i in tl.static_range(len(STREAMS)):
        addresses = addresses + (_buffers(row_ptr, STREAMS[i][2], STREAMS[i][3]),)
    return addresses


@triton.jit
def load_hyper(hypers_ptr, row_ptr, control_ptr, COLUMNS: tl.constexpr, SCALARS: tl.constexpr):
    """One tensor's hyperparameters, and the key of its random bits: (seed, step, origin)."""
    index = tl.load(row_ptr + COLUMNS - 2) + tl.load(control_ptr + 2).to(tl.int64)
    hyper_ptr = hypers_ptr + index * (SCALARS + 3)
    hyper = ()
    for i in tl.static_range(SCALARS):
        hyper = hyper + (tl.load(hyper_ptr + i),)
    word_ptr = (hyper_ptr + SCALARS).to(tl.pointer_type(tl.int32), bitcast=True)
    seed = (tl.load(word_ptr + 2).to(tl.int64) << 32) | (tl.load(word_ptr + 1).to(tl.int64) & 0xFFFFFFFF)
    return hyper, (seed, tl.load(word_ptr), tl.load(row_ptr + COLUMNS - 1))


@triton.jit
def _step_block(
    addresses, offsets, mask, hyper, scale, key, RULE: tl.constexpr, STREAMS: tl.constexpr, SUMS: tl.constexpr
):
    """Loads one block of every stream, applies the rule, stores what the pass writes; returns the block's sums."""
    values = ()
    for i in tl.static_range(len(STREAMS)):
        values = values + (STREAMS[i][0](addresses[i], offsets, mask),)
    result = RULE(values[0], values[1] * scale, values[2:], hyper)
    stored = (result[0], values[1]) + result[1]
    for i in tl.static_range(len(STREAMS)):
        if STREAMS[i][4]:
            STREAMS[i][1](addresses[i], offsets, mask, stored[i], key)
    sums = ()
    for i in tl.static_range(SUMS):
        terms = result[2][i]
        if mask is not None:
            terms = tl.where(mask, terms, 0.0)
        sums = sums + (tl.sum(terms, axis=0),)
    return sums


@triton.jit
def _add(totals, sums, COUNT: tl.constexpr):
    result = ()
    for i in tl.static_range(COUNT):
        result = result + (totals[i] + sums[i],)
    return result


@triton.jit
def fused_step_kernel(
    table_ptr,
    chunks_ptr,
    hypers_ptr,
    control_ptr,
    sums_ptr,
    partials_ptr,
    RULE: tl.constexpr,
    STREAMS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SCALARS: tl.constexpr,
    SUMS_IN: tl.constexpr,
    SUMS_OUT: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL_BLOCK: tl.constexpr,
    SOURCE: tl.constexpr,
):
    """One block of one tensor: load every stream through its codec, apply the rule, store through the codecs.

    STREAMS holds (load, store, first column, buffers, written) per stream. SUMS_IN per-tensor sums are read from
    `sums_ptr` [tensors, SUMS_IN] and appended, with the element count, to the scalars; SUMS_OUT sums of this block are
    left in `partials_ptr` [programs, SUMS_OUT]. SOURCE is a hash of the rule's and codecs' code: Triton's cache on disk
    sees a function inside a tuple by its name only.
    """
    if tl.load(control_ptr + 1) != 0.0:
        return
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks_ptr + 2 * program).to(tl.int64)
    start = tl.load(chunks_ptr + 2 * program + 1).to(tl.int64) * BLOCK
    row_ptr = table_ptr + tensor * COLUMNS
    addresses = stream_addresses(row_ptr, STREAMS)
    numel = tl.load(row_ptr + COLUMNS - 4)
    vector_end = tl.load(row_ptr + COLUMNS - 3)
    hyper, key = load_hyper(hypers_ptr, row_ptr, control_ptr, COLUMNS, SCALARS)
    if SUMS_IN > 0:
        for i in tl.static_range(SUMS_IN):
            hyper = hyper + (tl.load(sums_ptr + tensor * SUMS_IN + i),)
        hyper = hyper + (numel.to(tl.float32),)
    scale = tl.load(control_ptr)
    partials_ptr += program * SUMS_OUT

    if start + BLOCK <= vector_end:
        offsets = start + tl.arange(0, BLOCK)
        full_key = key + (start + tl.arange(0, BLOCK // 8) * 8,)
        sums = _step_block(addresses, offsets, None, hyper, scale, full_key, RULE, STREAMS, SUMS_OUT)
        for i in tl.static_range(SUMS_OUT):
            tl.store(partials_ptr + i, sums[i])
    else:
        # One element a thread at a time: the tail and unaligned tensors must not cost the full path its registers.
        totals = ()
        for i in tl.static_range(SUMS_OUT):
            totals = totals + (0.0,)
        for part in range(tl.cdiv(tl.minimum(numel - start, BLOCK), TAIL_BLOCK)):
            offsets = start + part * TAIL_BLOCK + tl.arange(0, TAIL_BLOCK)
            tail_key = key + (offsets,)
            sums = _step_block(addresses, offsets, offsets < numel, hyper, scale, tail_key, RULE, STREAMS, SUMS_OUT)
            totals = _add(totals, sums, SUMS_OUT)
        for i in tl.static_range(SUMS_OUT):
            tl.store(partials_ptr + i, totals[i])


def source_hash(*functions: Any) -> str:
    """A short hash of the JIT functions' code and of all that they call (their names only where interpreted)."""
    keys = [getattr(function, "cache_key", None) or repr(function) for function in functions]
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]


def columns(codecs: tuple[Codec, ...]) -> int:
    """Width of the table for these streams."""
    return sum(len(codec.buffers) for codec in codecs) + len(TAIL_COLUMNS)


@functools.cache
def constants(spec: RuleSpec, index: int, codecs: tuple[Codec, ...], scalars: int) -> dict[str, Any]:
    """The compile-time arguments of `fused_step_kernel` for one pass.

    Args:
        spec: the rule.
        index: which of its passes.
        codecs: one per stream: parameter, gradient, then `spec.slots`.
        scalars: how many floats `spec.scalars` returns.
    """
    current: Pass = spec.passes[index]
    names = ("param", "grad", *spec.slots)
    streams, first = [], 0
    for name, codec in zip(names, codecs, strict=True):
        streams.append((codec.load, codec.store, first, len(codec.buffers), name in current.writes))
        first += len(codec.buffers)
    functions = [current.rule, *(f for stream in streams for f in stream[:2])]
    return {
        "RULE": current.rule,
        "STREAMS": tuple(streams),
        "COLUMNS": columns(codecs),
        "SCALARS": scalars,
        "SUMS_IN": spec.passes[index - 1].sums if index else 0,
        "SUMS_OUT": current.sums,
        "BLOCK": BLOCK,
        "TAIL_BLOCK": TAIL_BLOCK,
        "SOURCE": source_hash(*functions),
    }
