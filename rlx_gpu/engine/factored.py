"""The driver of factored second moments: six launches for all matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..kernels import factored
from ..kernels.codecs import ALIGNMENT, codecs_of
from ..kernels.spec import FactoredSpec
from . import tables
from .buckets import BucketKey, BucketMember, Step, addresses
from .devices import number_dtype
from .inputs import StepInputs
from .launch import Launch
from .portions import portions
from .sums import SumLaunch
from .tables import upload

PARAM, GRAD, ROW_VAR, COL_VAR = range(4)  # the streams, each of one buffer


class FactoredBucket:
    """Matrices under one factored rule. A transposed matrix is stepped as the matrix its memory holds."""

    waits = False

    def __init__(self, key: BucketKey, members: Sequence[BucketMember], inputs: StepInputs) -> None:
        assert isinstance(key.spec, FactoredSpec)
        device = key.device
        params = [member.entry.param for member in members]
        transposed = np.array([not param.is_contiguous() for param in params])[:, None]
        shapes = np.array([tuple(param.shape) for param in params], dtype=np.int64)
        rows, cols = np.where(transposed, shapes[:, ::-1], shapes).T
        own = portions(device)
        programs, ranges = tables.tiles(rows, cols, own.tile_rows, own.tile_cols)
        vector_blocks = tables.vectors(rows, cols, own.vector_block)
        row_ranges = tables.blocks(rows, own.vector_block)[1]  # of the programs that step row vectors
        row_partials = rows * -(-cols // own.tile_cols)
        col_partials = cols * -(-rows // own.tile_rows)
        ends = np.cumsum(np.concatenate([row_partials, col_partials]))
        row_starts, col_starts = np.concatenate([[0], ends[:-1]]).reshape(2, -1)
        sizes = int(ends[-1]), (len(vector_blocks), 1), (len(params), 1), (len(programs), 2), (len(params), 2)
        workspace, vector_sums, row_sums, partials, sums = (
            torch.empty(shape, dtype=number_dtype(device), device=device) for shape in sizes
        )
        pointers = addresses(key, members)
        pointers = np.where(transposed, pointers[:, [PARAM, GRAD, COL_VAR, ROW_VAR]], pointers)
        fixed = {
            "rows": rows,
            "cols": cols,
            "vectorized": (pointers[:, PARAM] % ALIGNMENT == 0) & (cols % 8 == 0),
            "row_partials": row_starts,
            "col_partials": col_starts,
            "member": [member.place for member in members],
            "origin": [member.entry.origin for member in members],
        }
        table = upload(tables.table(factored.COLUMNS, fixed, pointers), device)
        common = inputs.rows, inputs.grads, inputs.words, workspace
        tiles, vectors = (table, upload(programs, device), *common), (table, upload(vector_blocks, device), *common)
        constants, step_kernel = factored.constants(key.spec, codecs_of(key.formats)), factored.factored_step_kernel
        self.launches = (
            Launch(factored.factored_sums_kernel, len(programs), *tiles, **constants["sums"]),
            Launch(factored.factored_moments_kernel, len(vector_blocks), *vectors, vector_sums, **constants["moments"]),
            SumLaunch(vector_sums, row_ranges, row_sums),
            Launch(step_kernel, len(programs), *tiles, row_sums, partials, **constants["norms"]),
            SumLaunch(partials, ranges, sums),
            Launch(step_kernel, len(programs), *tiles, row_sums, sums, **constants["update"]),
        )

    def make_tables(self, step: Step) -> None:
        """Nothing: all was made with the plan."""

    def forget_captures(self) -> None:
        """Nothing: captured steps read what all do."""

    def step(self, step: Step) -> None:
        """Tile sums, moments, the sum of `row_var`, norms, update."""
        for one in self.launches:
            one.run()
