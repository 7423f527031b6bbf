"""The tables that a launch reads, built in NumPy and sent to a device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]
KEY_WORDS = 3  # step, seed's low and high word, behind the scalars of a row


def upload(array: Array, device: torch.device) -> torch.Tensor:
    """The array on the device, in stream order; the host does not wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def blocks(numels: Array, block: int) -> tuple[Array, Array]:
    """Every block of every tensor, and where each tensor's blocks begin and end.

    Returns:
        int32 [programs, 2] of (tensor, block), and int64 [tensors, 2] of (first, last) program.
    """
    counts = -(-numels // block)
    ends = np.cumsum(counts)
    starts = ends - counts
    tensors = np.repeat(np.arange(len(numels)), counts)
    programs = np.stack([tensors, np.arange(counts.sum()) - np.repeat(starts, counts)], axis=1)
    return programs.astype(np.int32), np.stack([starts, ends], axis=1).astype(np.int64)


def tiles(rows: Array, cols: Array, tile_rows: int, tile_cols: int) -> tuple[Array, Array]:
    """Every tile of every matrix, as `blocks`: int32 [programs, 3] of (tensor, tile row, tile column), and ranges."""
    across = -(-cols // tile_cols)
    programs, ranges = blocks(-(-rows // tile_rows) * across, 1)
    tensor, tile = programs.T
    return np.stack([tensor, tile // across[tensor], tile % across[tensor]], axis=1).astype(np.int32), ranges


def vectors(rows: Array, cols: Array, block: int) -> Array:
    """Every block of every row vector, then of every column vector: int32 [programs, 3] of (tensor, side, block)."""
    sides = [np.insert(blocks(lengths, block)[0], 1, side, axis=1) for side, lengths in enumerate((rows, cols))]
    return np.concatenate(sides).astype(np.int32)


def hyper_rows(scalars: Sequence[tuple[float, ...]], steps: Sequence[int], seeds: Sequence[int]) -> Array:
    """One row a combination: the scalars rounded to float32, then the step and the seed's two words as bits."""
    table = np.zeros((len(scalars), len(scalars[0]) + KEY_WORDS), dtype=np.float32)
    table[:, : len(scalars[0])] = scalars
    words = table.view(np.uint32)
    words[:, -3] = [step & 0xFFFFFFFF for step in steps]
    words[:, -2] = [seed & 0xFFFFFFFF for seed in seeds]
    words[:, -1] = [seed >> 32 & 0xFFFFFFFF for seed in seeds]
    return table
