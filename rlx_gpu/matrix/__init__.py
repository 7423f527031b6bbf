"""Routines on batches of matrices: what the elementwise driver cannot do, in batched products and factorisations."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..launch import Bucket, BucketKey, Member


def make_matrix_bucket(key: BucketKey, members: Sequence[Member]) -> Bucket:
    """The bucket of the routine that the key's rule names: its module's own, or one for its `direction`."""
    from .bucket import MatrixBucket

    spec: Any = key.spec
    routine = importlib.import_module(f".{spec.routine}", __name__)
    made: Bucket = getattr(routine, "BUCKET", MatrixBucket)(key, members)
    return made
