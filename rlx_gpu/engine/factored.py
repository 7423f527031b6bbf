"""The driver of factored second moments: six launches for all matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..kernels import factored
from ..kernels.codecs import ALIGNMENT, codecs_of
from ..kernels.spec import FactoredSpec
from . import launch, tables
from .buckets import BucketKey, BucketMember, Step, addresses
from .devices import number_dtype
from .elementwise import finish_sums
from .inputs import StepInputs
from .portions import portions
from .tables import upload

PARAM, GRAD, ROW_VAR, COL_VAR = range(4)  # the streams, each of one buffer


class FactoredBucket:
    """Matrices under one factored rule. A transposed matrix is stepped as the matrix its memory holds."""

    waits = False

    def __init__(self, key: BucketKey, members: Sequence[BucketMember], inputs: StepInputs) -> None:
        assert isinstance(key.spec, FactoredSpec)
        self.inputs, device = inputs, key.device
        params = [member.entry.param for member in members]
        transposed = np.array([not param.is_contiguous() for param in params])[:, None]
        shapes = np.array([tuple(param.shape) for param in params], dtype=np.int64)
        rows, cols = np.where(transposed, shapes[:, ::-1], shapes).T
        own = portions(device)
        programs, ranges = tables.tiles(rows, cols, own.tile_rows, own.tile_cols)
        vector_blocks = tables.vectors(rows, cols, own.vector_block)
        self.programs, self.vector_programs = len(programs), len(vector_blocks)
        row_ranges = tables.blocks(rows, own.vector_block)[1]  # of the programs that step row vectors
        self.tiles, self.vectors, self.ranges, self.row_ranges = (
            upload(array, device) for array in (programs, vector_blocks, ranges, row_ranges)
        )
        row_partials = rows * -(-cols // own.tile_cols)
        col_partials = cols * -(-rows // own.tile_rows)
        ends = np.cumsum(np.concatenate([row_partials, col_partials]))
        row_starts, col_starts = np.concatenate([[0], ends[:-1]]).reshape(2, -1)
        workspace = (int(ends[-1]), (self.vector_programs, 1), (len(params), 1), (self.programs, 2), (len(params), 2))
        self.workspace, self.vector_sums, self.row_sums, self.partials, self.sums = (
            torch.empty(shape, dtype=number_dtype(device), device=device) for shape in workspace
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
        self.table = upload(tables.table(factored.COLUMNS, fixed, pointers), device)
        self.constants = factored.constants(key.spec, codecs_of(key.formats))

    def step(self, step: Step) -> None:
        """Tile sums, moments, the sum of `row_var`, norms, update."""
        constants, inputs = self.constants, (self.inputs.rows, self.inputs.grads, self.inputs.words, self.workspace)
        tiles, vectors = (self.table, self.tiles, *inputs), (self.table, self.vectors, *inputs, self.vector_sums)
        launch.launch(factored.factored_sums_kernel, self.programs, *tiles, **constants["sums"])
        launch.launch(factored.factored_moments_kernel, self.vector_programs, *vectors, **constants["moments"])
        finish_sums(self.vector_sums, self.row_ranges, self.row_sums)
        step_kernel = factored.factored_step_kernel
        launch.launch(step_kernel, self.programs, *tiles, self.row_sums, self.partials, **constants["norms"])
        finish_sums(self.partials, self.ranges, self.sums)
        launch.launch(step_kernel, self.programs, *tiles, self.row_sums, self.sums, **constants["update"])
