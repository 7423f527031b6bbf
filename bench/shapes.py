"""Tensor shapes of real models."""

from __future__ import annotations

Shape = tuple[int, ...]


def gpt2_124m() -> list[Shape]:
    """The 148 tensors of GPT-2 124M, 124,439,808 elements (openai-community/gpt2; the head is the embedding)."""
    width, layers, vocabulary, context = 768, 12, 50257, 1024
    block: list[Shape] = [
        (width,),
        (width,),
        (width, 3 * width),
        (3 * width,),
        (width, width),
        (width,),
        (width,),
        (width,),
        (width, 4 * width),
        (4 * width,),
        (4 * width, width),
        (width,),
    ]
    return [(vocabulary, width), (context, width), *block * layers, (width,), (width,)]


def square_1b() -> list[Shape]:
    """64 matrices of 4096 × 4096, 1,073,741,824 elements: large enough that nothing but memory counts."""
    return [(4096, 4096)] * 64


SHAPES = {"gpt2-124m": gpt2_124m, "square-1b": square_1b}
