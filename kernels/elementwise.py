"""The fused multi-tensor driver: any rule over any storage, one launch for every tensor of a model.

Tables, all on the device (built by `rlx_gpu.engine.elementwise`):
    table   int64 [tensors, columns]: NUMEL, VECTOR_END (elements below it lie in full aligned blocks), MEMBER (place in
            `grads` and `rows`), ORIGIN, then the streams' buffers (parameter, gradient, slots in order): an address,
            or an offset in bytes from the gradient's address or from the workspace, as STREAMS says.
    chunks  int32 [programs, 2]: which tensor, which block of BLOCK elements.
    rows    float32 [members, ROW_WIDTH]: the rule's scalars and the key of random bits, see `kernels/rows.py`.
    grads   int64 [members]: the gradient's address; 0 where there is none, and then the tensor is left alone.
    words   float32 [2]: the factor on every gradient, and whether to leave everything untouched.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

from .codecs import Codec
from .language import tl, triton
from .spec import KEY, ROW_WIDTH, FactoredSpec, RuleSpec

BLOCK = 1024  # 8 elements a thread: one 128-bit access of a 16-bit stream, two of a 32-bit one
TAIL_BLOCK = 128
COLUMNS = ("numel", "vector_end", "member", "origin")
NUMEL, VECTOR_END, MEMBER, ORIGIN = (tl.constexpr(i) for i in range(len(COLUMNS)))
WIDTH, FIRST_KEY = tl.constexpr(ROW_WIDTH), tl.constexpr(ROW_WIDTH - len(KEY))
ALIGNED = tl.constexpr(16)
ABSOLUTE, FROM_GRAD, FROM_WORKSPACE = (tl.constexpr(i) for i in range(3))  # what a stream's column is an offset from
BASES = {"grad": FROM_GRAD, "workspace": FROM_WORKSPACE}


@triton.jit
def _buffers(row_ptr, base, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """The addresses of one stream's buffers."""
    buffers = ()
    for i in tl.static_range(COUNT):
        buffers = buffers + (tl.load(row_ptr + FIRST + i) + base,)
    return buffers


@triton.jit
def stream_addresses(row_ptr, grad, workspace_ptr, STREAMS: tl.constexpr):
    """One tuple of buffer addresses per stream."""
    addresses = ()
    for i in tl.static_range(len(STREAMS)):
        if STREAMS[i][5] == FROM_GRAD:
            buffers = _buffers(row_ptr, grad, STREAMS[i][2], STREAMS[i][3])
        elif STREAMS[i][5] == FROM_WORKSPACE:
            buffers = _buffers(row_ptr, workspace_ptr.to(tl.int64), STREAMS[i][2], STREAMS[i][3])
        else:
            buffers = _buffers(row_ptr, 0, STREAMS[i][2], STREAMS[i][3])
        addresses = addresses + (buffers,)
    return addresses


@triton.jit
def load_row(rows_ptr, member, origin, SCALARS: tl.constexpr):
    """One tensor's scalars, and the key of its random bits: (seed, step, origin)."""
    row_ptr = rows_ptr + member * WIDTH
    hyper = ()
    for i in tl.static_range(SCALARS):
        hyper = hyper + (tl.load(row_ptr + i),)
    key_ptr = (row_ptr + FIRST_KEY).to(tl.pointer_type(tl.int32), bitcast=True)
    seed = (tl.load(key_ptr + 2).to(tl.int64) << 32) | (tl.load(key_ptr + 1).to(tl.int64) & 0xFFFFFFFF)
    return hyper, (seed, tl.load(key_ptr), origin)


@triton.jit
def _step_block(
    addresses, offsets, mask, start, hyper, scale, key, RULE: tl.constexpr, STREAMS: tl.constexpr, SUMS: tl.constexpr
):
    """Loads one block of every stream, applies the rule, stores what the pass writes; returns the block's sums."""
    values = ()
    for i in tl.static_range(len(STREAMS)):
        values = values + (STREAMS[i][0](addresses[i], offsets, mask, start),)
    result = RULE(values[0], values[1] * scale, values[2:], hyper)
    stored = (result[0], values[1]) + result[1]
    for i in tl.static_range(len(STREAMS)):
        if STREAMS[i][4]:
            STREAMS[i][1](addresses[i], offsets, mask, start, stored[i], key)
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
    rows_ptr,
    grads_ptr,
    words_ptr,
    workspace_ptr,
    sums_ptr,
    partials_ptr,
    RULE: tl.constexpr,
    STREAMS: tl.constexpr,
    TABLE_WIDTH: tl.constexpr,
    SCALARS: tl.constexpr,
    SUMS_IN: tl.constexpr,
    SUMS_OUT: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL_BLOCK: tl.constexpr,
    SOURCE: tl.constexpr,
):
    """One block of one tensor: load every stream through its codec, apply the rule, store through the codecs.

    STREAMS holds (load, store, first column, buffers, written, offset from what, read) per stream; loads that are not
    read the compiler removes. SUMS_IN per-tensor sums are read from `sums_ptr` [tensors, SUMS_IN] and appended, with
    the element count, to the scalars; SUMS_OUT sums of this block are left in `partials_ptr` [programs, SUMS_OUT],
    zeros for a tensor without a gradient. SOURCE is a hash of the rule's and codecs' code: Triton's cache on disk sees
    a function inside a tuple by its name only.
    """
    skip = tl.load(words_ptr + 1)
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks_ptr + 2 * program).to(tl.int64)
    start = tl.load(chunks_ptr + 2 * program + 1).to(tl.int64) * BLOCK
    row_ptr = table_ptr + tensor * TABLE_WIDTH
    member = tl.load(row_ptr + MEMBER)
    grad = tl.load(grads_ptr + member)
    partials_ptr += program * SUMS_OUT
    if (skip != 0.0) | (grad == 0):
        for i in tl.static_range(SUMS_OUT):
            tl.store(partials_ptr + i, 0.0)
        return
    addresses = stream_addresses(row_ptr, grad, workspace_ptr, STREAMS)
    numel = tl.load(row_ptr + NUMEL)
    hyper, key = load_row(rows_ptr, member, tl.load(row_ptr + ORIGIN), SCALARS)
    if SUMS_IN > 0:
        for i in tl.static_range(SUMS_IN):
            hyper = hyper + (tl.load(sums_ptr + tensor * SUMS_IN + i),)
        hyper = hyper + (numel.to(tl.float32),)
    scale = tl.load(words_ptr)

    if (start + BLOCK <= tl.load(row_ptr + VECTOR_END)) & (addresses[1][0] % ALIGNED == 0):
        offsets = start + tl.arange(0, BLOCK)
        full_key = key + (start + tl.arange(0, BLOCK // 8) * 8,)
        sums = _step_block(addresses, offsets, None, start, hyper, scale, full_key, RULE, STREAMS, SUMS_OUT)
        for i in tl.static_range(SUMS_OUT):
            tl.store(partials_ptr + i, sums[i])
    else:
        # One element a thread at a time: the tail and unaligned tensors must not cost the full path its registers.
        totals = ()
        for i in tl.static_range(SUMS_OUT):
            totals = totals + (0.0,)
        for part in range(tl.cdiv(tl.minimum(numel - start, BLOCK), TAIL_BLOCK)):
            first = start + part * TAIL_BLOCK
            offsets = first + tl.arange(0, TAIL_BLOCK)
            tail_key = key + (offsets,)
            mask = offsets < numel
            sums = _step_block(addresses, offsets, mask, first, hyper, scale, tail_key, RULE, STREAMS, SUMS_OUT)
            totals = _add(totals, sums, SUMS_OUT)
        for i in tl.static_range(SUMS_OUT):
            tl.store(partials_ptr + i, totals[i])


def source_hash(*functions: Any) -> str:
    """A short hash of the JIT functions' code and of all that they call (their names only where interpreted)."""
    keys = [getattr(function, "cache_key", None) or repr(function) for function in functions]
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]


def streams_of(
    spec: RuleSpec | FactoredSpec,
    codecs: Sequence[Codec],
    first: int,
    writes: Sequence[str] = (),
    reads: Sequence[str] | None = None,
) -> tuple[tuple[tuple[Any, ...], ...], int]:
    """What the kernels are told of their streams, whose columns begin at `first`, and the width of the table.

    The gradient's column is an offset from its address, those of `offsets` from what these name, others addresses.
    """
    base_of = {"grad": FROM_GRAD, **{name: BASES[base] for name, base in spec.offsets}}
    streams = []
    for name, codec in zip(("param", "grad", *spec.slots), codecs, strict=True):
        base = base_of.get(name, ABSOLUTE).value
        read = reads is None or name in reads
        streams.append((codec.load, codec.store, first, len(codec.buffers), name in writes, base, read))
        first += len(codec.buffers)
    return tuple(streams), first


@functools.cache
def constants(spec: RuleSpec, index: int, codecs: tuple[Codec, ...], block: int = BLOCK) -> dict[str, Any]:
    """The compile-time arguments of `fused_step_kernel` for one pass; codecs of parameter, gradient, then the slots."""
    current = spec.passes[index]
    streams, width = streams_of(spec, codecs, len(COLUMNS), current.writes, current.reads)
    return {
        "RULE": current.rule,
        "STREAMS": streams,
        "TABLE_WIDTH": width,
        "SCALARS": len(spec.row.names),
        "SUMS_IN": spec.passes[index - 1].sums if index else 0,
        "SUMS_OUT": current.sums,
        "BLOCK": block,
        "TAIL_BLOCK": TAIL_BLOCK,
        "SOURCE": source_hash(current.rule, *(f for stream in streams for f in stream[:2])),
    }
