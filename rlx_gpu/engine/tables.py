"""The tables that launches read, built in NumPy and sent to a device without waiting for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .capture import refuse_capture

SENT = "what the host sends", "replays would send what lies there by then"
Array = np.ndarray[Any, Any]


def upload(array: Array, device: torch.device) -> torch.Tensor:
    """The array on the device, in stream order; the host does not wait."""
    refuse_capture(*SENT)
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def send(array: Array, target: torch.Tensor) -> None:
    """Writes the array into a tensor of its shape, in stream order; the host does not wait."""
    refuse_capture(*SENT)
    source = torch.from_numpy(np.ascontiguousarray(array))
    target.copy_(source if target.device.type == "cpu" else source.pin_memory(), non_blocking=True)


def table(columns: Sequence[str], fixed: Mapping[str, Any], pointers: Array) -> Array:
    """int64 [tensors, columns]: the fixed columns, a value a tensor, in the order of their names, then the pointers."""
    return np.column_stack([*(fixed[name] for name in columns), pointers]).astype(np.int64)


def blocks(numels: Array, block: int) -> tuple[Array, Array]:
    """Every block of every tensor, int32 [programs, 2] of (tensor, block); and int64 [tensors, 2], where each tensor's
    blocks begin and end among the programs.
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
