"""What the repaired interpreter of Triton does that it does not do by itself, with every version that is asked for."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from rlx_gpu.engine.interpreter import _make_scalars_integers


@triton.jit
def _count_kernel(ends, counts):
    """Counts from a loaded number up to a computed one."""
    count = 0
    for _ in range(tl.load(ends), tl.minimum(tl.load(ends + 1), 100)):
        count += 1
    tl.store(counts, count)


def test_ranges_end_at_scalars() -> None:
    ends, counts = torch.tensor([3, 8], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    _count_kernel[(1,)](ends, counts)
    assert counts.item() == 5


def test_ranges_end_at_scalars_where_the_interpreter_makes_integers_of_arrays() -> None:
    def patch_like_triton_3_6(tensor, scope) -> None:
        scope.set_attr(tensor, "__index__", lambda scalar: int(scalar.handle.data))

    scope = interpreter._LangPatchScope()
    _make_scalars_integers(patch_like_triton_3_6, tl.tensor, scope)
    try:
        scalar = tl.tensor(interpreter.TensorHandle(np.array([3], np.int32), tl.int32), tl.int32)
        assert list(range(scalar)) == [0, 1, 2]
    finally:
        scope.restore()
