"""Tensor shapes of real models, and what one device holds of them.

The sizes are those of the named checkpoints' configurations; tests hold every list to the checkpoint's element count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Shape = tuple[int, ...]
DEVICES = 8  # that a sharded model is spread over


def count(shapes: Sequence[Shape]) -> int:
    """The number of elements."""
    return sum(math.prod(shape) for shape in shapes)


def gpt2_124m() -> list[Shape]:
    """The 148 tensors of GPT-2 124M, 124,439,808 elements (openai-community/gpt2; the head is the embedding)."""
    width, layers, vocabulary, context = 768, 12, 50257, 1024
    norm: list[Shape] = [(width,)] * 2
    attention: list[Shape] = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    mlp: list[Shape] = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), (context, width), *[*norm, *attention, *norm, *mlp] * layers, *norm]


def llama_block(width: int, key_value: int, inner: int) -> list[Shape]:
    """The 9 tensors of one block: queries, keys, values and output; gate, up and down; two norms."""
    attention: list[Shape] = [(width, width), (key_value, width), (key_value, width), (width, width)]
    mlp: list[Shape] = [(inner, width), (inner, width), (width, inner)]
    return [*attention, *mlp, (width,), (width,)]


def llama_1b() -> list[Shape]:
    """The 146 tensors of meta-llama/Llama-3.2-1B, 1,235,814,400 elements (the head is the embedding)."""
    return [(128256, 2048), *llama_block(2048, 512, 8192) * 16, (2048,)]


def llama_8b() -> list[Shape]:
    """The 291 tensors of meta-llama/Llama-3.1-8B, 8,030,261,248 elements."""
    return [(128256, 4096), *llama_block(4096, 1024, 14336) * 32, (4096,), (128256, 4096)]


def llama_8b_shard() -> list[Shape]:
    """What one of 8 devices holds of Llama-3.1-8B under torch's `fully_shard` (FSDP2), 1,003,782,656 elements.

    Every parameter is cut along its first dimension, so that a matrix stays one with an eighth of its rows.
    """
    return [(rows // DEVICES, *rest) for rows, *rest in llama_8b()]


def olmoe(devices: int = 1) -> list[Shape]:
    """One device's share of allenai/OLMoE-1B-7B-0924, 6,919,161,856 elements, under expert parallelism.

    Its part of the 64 experts of each of 16 layers, a gate, an up and a down projection each, and a copy of all the
    rest: attention with norms of queries and keys, the router, two norms, the embedding and the head.
    """
    width, inner, experts, layers, vocabulary = 2048, 1024, 64, 16, 50304
    attention: list[Shape] = [*[(width, width)] * 4, (width,), (width,)]
    expert: list[Shape] = [(inner, width), (inner, width), (width, inner)]
    layer: list[Shape] = [*attention, (experts, width), *expert * (experts // devices), (width,), (width,)]
    return [(vocabulary, width), *layer * layers, (width,), (vocabulary, width)]


def moe() -> list[Shape]:
    """The 531 tensors that one of 8 devices holds of OLMoE-1B-7B, 1,282,017,280 elements."""
    return olmoe(DEVICES)


def vit() -> list[Shape]:
    """The 392 tensors of google/vit-large-patch16-224, 304,326,632 elements."""
    width, layers, inner, patch, tokens, classes = 1024, 24, 4096, 16, 14 * 14 + 1, 1000
    norm: list[Shape] = [(width,)] * 2
    attention: list[Shape] = [(width, width), (width,)] * 4
    mlp: list[Shape] = [(inner, width), (inner,), (width, inner), (width,)]
    embedding: list[Shape] = [(1, 1, width), (1, tokens, width), (width, 3, patch, patch), (width,)]
    return [*embedding, *[*norm, *attention, *norm, *mlp] * layers, *norm, (classes, width), (classes,)]


def many_small() -> list[Shape]:
    """5,000 matrices of 64 × 64, 20,480,000 elements: no checkpoint's, but what launches and host time are made of."""
    return [(64, 64)] * 5000


def square_1b() -> list[Shape]:
    """64 matrices of 4096 × 4096, 1,073,741,824 elements: large enough that nothing but memory counts."""
    return [(4096, 4096)] * 64


SHAPES: dict[str, Callable[[], list[Shape]]] = {
    "gpt2-124m": gpt2_124m,
    "llama-1b": llama_1b,
    "llama-8b-shard": llama_8b_shard,
    "moe": moe,
    "vit": vit,
    "many-small": many_small,
    "square-1b": square_1b,
}
EDGES = {(128256, 2048), (50257, 768), (1024, 768), (50304, 2048), (1000, 1024), (128256 // DEVICES, 4096)}


def matrices(model: str) -> list[Shape]:
    """The hidden matrices of a model, what a matrix optimizer steps: no vectors, no embedding and no head."""
    return [shape for shape in SHAPES[model]() if len(shape) == 2 and shape not in EDGES]
