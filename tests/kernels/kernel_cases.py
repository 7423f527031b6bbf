"""Shapes and memory layouts of parameters, and the tensors that have them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rlx_gpu.kernels.codecs import ALIGNMENT
from rlx_gpu.reference.formats import round_to


@dataclass(frozen=True)
class Case:
    """One parameter: shape, memory layout of itself and of its gradients, and how large the gradients are."""

    name: str
    shape: tuple[int, ...]
    layout: str = "contiguous"
    grad_layout: str = "contiguous"
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
    Case("small_grad", (130,), grad_size=1e-4),
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


def tensor_of(values: np.ndarray, dtype: torch.dtype, layout: str = "contiguous") -> torch.Tensor:
    """The values, which the dtype must hold exactly, in this memory layout."""
    source = torch.from_numpy(np.ascontiguousarray(values)).reshape(values.shape).to(dtype)
    result = _LAYOUTS[layout](source)
    result.copy_(source) if layout != "expanded" else None
    assert np.array_equal(result.double().numpy(), values, equal_nan=True)
    return result


def _unaligned(source: torch.Tensor) -> torch.Tensor:
    view = torch.full((source.numel() + 1,), float("nan"), dtype=source.dtype)[1:].view(source.shape)
    assert view.data_ptr() % ALIGNMENT
    return view


def _strided(source: torch.Tensor) -> torch.Tensor:
    return torch.full((*source.shape, 2), float("nan"), dtype=source.dtype)[..., 0]


_LAYOUTS = {
    "contiguous": torch.empty_like,
    "transposed": lambda source: torch.empty_like(source.t(), memory_format=torch.contiguous_format).t(),
    "channels_last": lambda source: torch.empty_like(source, memory_format=torch.channels_last),
    "permuted": lambda source: source.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "unaligned": _unaligned,
    "strided": _strided,
    "expanded": lambda source: source[:1].expand(source.shape),
}


def drawn_values(
    case: Case, rng: np.random.Generator, dtype: str, size: float, layout: str, mean: float = 0.0
) -> np.ndarray:
    """Normal numbers that the dtype and float32 hold exactly, in float64."""
    values = round_to(round_to(rng.normal(size=case.shape) * size + mean, "float32"), dtype)
    return np.broadcast_to(values[:1], case.shape) if layout == "expanded" else values
