"""The storage formats: what each keeps in memory, and which go together. Nothing here needs Triton."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Buffer:
    """One stretch of memory of a stored stream.

    Args:
        suffix: behind the slot's name in a state; the first buffer of a format has none.
        dtype: of its elements, torch's name.
        group: how many consecutive numbers of a row share one element; a row is all behind dimension 0.
    """

    suffix: str
    dtype: str
    group: int = 1


# By the name of the codec. A state's format is one of these, named by `state_dtype`.
FORMATS = {
    "float32": (Buffer("", "float32"),),
    "float16": (Buffer("", "float16"),),
    "bfloat16": (Buffer("", "bfloat16"),),
    "bfloat16_stochastic": (Buffer("", "bfloat16"),),
    "float64": (Buffer("", "float64"),),  # on the CPU only
}
STATE_FORMATS = ("float32", "bfloat16")
# Codecs of parameter, gradient and every slot, by the name in the dtype column of reports.
STORAGES = {
    "float32": ("float32", "float32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16", "bfloat16"),
    "bfloat16_stochastic": ("bfloat16_stochastic", "bfloat16", "bfloat16"),
    "bfloat16_float32": ("bfloat16", "bfloat16", "float32"),
    "float16": ("float16", "float16", "float32"),
}
