"""The drivers that need Triton, imported once and only where there are tensors for them."""

from __future__ import annotations

from ..kernels.spec import FactoredSpec, RuleSpec
from .elementwise import ElementwiseBucket
from .factored import FactoredBucket
from .norms import Guard
from .rows import RowLaunch

__all__ = ["BUCKETS", "Guard", "RowLaunch"]
BUCKETS = {RuleSpec: ElementwiseBucket, FactoredSpec: FactoredBucket}  # matrices have their own
