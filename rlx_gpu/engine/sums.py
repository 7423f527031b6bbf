"""Partial sums of tensors, added up in order: by one launch, or by two where a tensor has very many."""

from __future__ import annotations

import numpy as np
import torch

from ..kernels import reductions
from .launch import Launch
from .tables import Array, blocks, upload


class SumLaunch:
    """Adds the rows of `partials` [programs, sums] in float64, those of each tensor into one row of `sums`.

    `ranges` int64 [tensors, 2] says which rows. One program adds at most MOST_ROWS of them; where a tensor has more,
    their sums are added by a second launch.
    """

    def __init__(self, partials: torch.Tensor, ranges: Array, sums: torch.Tensor) -> None:
        lengths = ranges[:, 1] - ranges[:, 0]
        self.launches: list[Launch] = []
        if (lengths > reductions.MOST_ROWS).any():
            parts, inner = blocks(lengths, reductions.MOST_ROWS)
            starts = ranges[parts[:, 0], 0] + parts[:, 1] * reductions.MOST_ROWS
            ends = np.minimum(starts + reductions.MOST_ROWS, ranges[parts[:, 0], 1])
            middle = torch.empty((len(parts), sums.shape[1]), dtype=torch.float64, device=sums.device)
            self._add(partials, np.stack([starts, ends], axis=1), middle)
            partials, ranges = middle, inner
        self._add(partials, ranges, sums)

    def run(self, workspace: torch.Tensor | None = None) -> None:
        """Fills the sums; nothing of it lies in a workspace."""
        for one in self.launches:
            one.run()

    def _add(self, partials: torch.Tensor, ranges: Array, sums: torch.Tensor) -> None:
        """One more launch."""
        table, constants = upload(ranges, sums.device), {"SUMS": sums.shape[1], "BLOCK": reductions.FINISH_BLOCK}
        kernel = reductions.finish_sums_kernel
        self.launches.append(Launch(kernel, len(sums), partials, table, sums, **constants))
