"""Shapes, memory layouts and sizes of parameters and gradients, beyond those that `rlx-gpu parity` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rlx_gpu.parity import cases

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case(cases.Case):
    """One parameter, and factors on its own numbers and on its gradients', 0 or powers of two."""

    grad_size: float = 1.0
    param_size: float = 1.0


CASES = (
    Case("one", (1,)),
    Case("odd", (127,)),
    Case("block", (1024,)),
    Case("block_and_one", (1025,)),
    Case("tall", (35, 6)),
    Case("wide", (65, 128)),  # a tile of 64 x 128 in full, and a row below it
    Case("transposed", (16, 9), "transposed", "transposed"),
    Case("unaligned", (300,), "unaligned", "unaligned"),
    Case("unaligned_matrix", (5, 136), "unaligned", "unaligned"),
    Case("empty", (0, 3)),
)
MORE_CASES = (
    Case("scalar", ()),
    Case("wide_odd", (3, 131)),
    Case("cube", (3, 5, 7)),
    Case("channels_last", (2, 8, 3, 5), "channels_last", "channels_last"),
    Case("permuted", (4, 6, 5), "permuted", "permuted"),
    Case("grad_transposed", (8, 24), grad_layout="transposed"),
    Case("param_transposed", (8, 24), "transposed", "contiguous"),
    Case("grad_strided", (5, 12), grad_layout="strided"),
    Case("grad_expanded", (6, 16), grad_layout="expanded"),
    Case("unaligned_grad", (4, 136), grad_layout="unaligned"),
    Case("unaligned_param", (270,), "unaligned"),
    Case("small_grad", (130,), grad_size=2.0**-13),
    Case("zero_grad", (65,), grad_size=0.0),
    Case("zero", (7, 3), grad_size=0.0, param_size=0.0),
)
ALL_CASES = (*CASES, *MORE_CASES)
FORMAT_CASES = (
    *CASES,
    *(case for case in MORE_CASES if case.name in ("channels_last", "grad_transposed", "zero_grad")),
)
MANY_TILES = (Case("high", (65 * 64, 128)), Case("broad", (1, 65 * 128)))
FEW = tuple(case for case in ALL_CASES if case.name in ("odd", "unaligned_grad", "param_transposed", "permuted"))


def tensor_of(values: np.ndarray, dtype: str, layout: str = "contiguous") -> torch.Tensor:
    """The values, which the dtype must hold exactly, in this memory layout."""
    values = np.array(values)  # writable, or torch complains
    if layout in cases.LAYOUTS:
        result = cases.tensor_of(values, dtype, layout, CPU)
    else:
        result = _LAYOUTS[layout](cases.tensor_of(values, dtype, "contiguous", CPU))
    assert np.array_equal(result.double().numpy(), values, equal_nan=True)
    return result


def fitting(values: np.ndarray, layout: str) -> np.ndarray:
    """The values as far as the memory layout can hold them: of an expanded tensor all rows are one."""
    return np.broadcast_to(values[:1], values.shape) if layout == "expanded" else values


def _strided(source: torch.Tensor) -> torch.Tensor:
    view = torch.full((*source.shape, 2), float("nan"), dtype=source.dtype)[..., 0]
    return view.copy_(source)


_LAYOUTS = {
    "channels_last": lambda source: source.to(memory_format=torch.channels_last),
    "permuted": lambda source: source.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "strided": _strided,
    "expanded": lambda source: source[:1].expand(source.shape),
}
