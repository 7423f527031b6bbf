"""The gate before every measurement: what is wrong must not be timed.

`rlx-gpu parity` in small, for the optimizer, the rule, the storage and the device to be timed. It runs Muon's iteration
in float32, so what is timed, in bfloat16, is held here to the error of its products. The shapes are small: on a GPU the
kernels for larger matrices are left to `make test-gpu`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import rlx_gpu

from .providers import OWN_HYPER

if TYPE_CHECKING:
    from ..parity.trial import Trial

SHAPES, MATRICES = "1,127,1025,65x128,9x136:unaligned", "40x40,129x65"
STEPS = 2
ITERATION_ERROR = 0.05  # of a matrix's change, in the Frobenius norm: each of five iterations rounds to bfloat16


class ParityError(Exception):
    """A kernel does not agree with the reference."""


def check(optimizer: str, storage: str, device: str) -> None:
    """Holds ours to the reference for two steps, every parameter and every slot.

    Args:
        optimizer: a name of `rlx_gpu.TABLE`.
        storage: a key of `providers.STORAGES` that ours has.
        device: "cuda", or "cpu" where kernels are interpreted.

    Raises:
        ParityError: they differ by more than parity allows, or no kernel ran; names the optimizer, the storage, the
            device and what failed.
    """
    ours = trial(optimizer, OWN_HYPER.get(optimizer, {}), storage, SHAPES, device)
    for _ in range(STEPS):
        ours.step()
    failures = ours.outcome.failures
    if not failures and optimizer == "Muon" and not (error := iteration_error(device)) <= ITERATION_ERROR:
        failures = [f"a step with its own ns_dtype is off by {error:.1e} of its change, allowed {ITERATION_ERROR:.1e}"]
    if failures:
        raise ParityError(f"{optimizer} in {storage} on {device}: {failures[0]}")


def iteration_error(device: str) -> float:
    """How far Muon's first step over matrices is off, as it iterates unless told otherwise, relative to its change."""
    import numpy as np

    (ns_dtype,) = [hyper.default for hyper in rlx_gpu.TABLE["Muon"].hyperparameters if hyper.name == "ns_dtype"]
    muon = trial("Muon", {"ns_dtype": ns_dtype}, "float32", MATRICES, device)
    muon.advance()
    changes = {key: muon.wanted[key] - start for key, start in muon.before.items()}
    errors = [np.linalg.norm(muon.after[key] - muon.wanted[key]) / np.linalg.norm(changes[key]) for key in changes]
    return float(np.max(errors))  # NaN of NaN


def trial(optimizer: str, switches: Mapping[str, Any], storage: str, shapes: str, device: str) -> Trial:
    """Parity's trial of one optimizer with these hyperparameters."""
    import torch

    from ..parity.cases import parse_shapes
    from ..parity.storages import find_storages
    from ..parity.trial import Trial
    from ..parity.variants import Variant

    (formats,) = find_storages([storage])
    variant = Variant(rlx_gpu.TABLE[optimizer], dict(switches))
    return Trial(variant, formats, parse_shapes(shapes), torch.device(device))
