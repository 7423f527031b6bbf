"""How much of a tensor one program of a launch steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels import elementwise, factored
from .devices import on_host


@dataclass(frozen=True)
class Portions:
    """Elements of a block; rows and columns of a matrix's tile; elements of a block of its row and column vectors."""

    block: int
    tile_rows: int
    tile_cols: int
    vector_block: int


TRITON = Portions(elementwise.BLOCK, factored.TILE_ROWS, factored.TILE_COLS, factored.VECTOR_BLOCK)
# A thread takes one program after the other: enough to be worth the calls, little enough to be shared out evenly.
HOST = Portions(block=2**14, tile_rows=64, tile_cols=1024, vector_block=1024)


def portions(device: torch.device) -> Portions:
    """Those of the driver that steps tensors of a device."""
    return HOST if on_host(device) else TRITON
