"""How tensors lie in memory, where it decides whether a kernel can step them as flat arrays."""

from __future__ import annotations

import torch


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill one stretch of memory without gaps or overlaps, in any order of dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def same_order(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether equal flat positions of two dense tensors of one shape are equal elements."""
    strides = zip(left.shape, left.stride(), right.stride(), strict=True)
    return all(a == b for size, a, b in strides if size != 1)
