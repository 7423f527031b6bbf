"""The array types every reference is written in."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
State: TypeAlias = dict[str, Array]
Shape: TypeAlias = tuple[int, ...]
Pair: TypeAlias = tuple[float, float]
