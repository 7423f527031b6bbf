"""The gate before every measurement: what is wrong must not be timed.

Ours steps small tensors on the device in the format to be timed, next to the reference in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import rlx_gpu

from ..reference.formats import round_to
from .providers import HYPER, OWN_HYPER, STORAGES

SHAPES = ((129, 65), (40, 40), (64, 1025), (1025,), (7,))
STEPS = 2
# SOAP's second step depends on how the first one's eigenvectors split the null space of a singular covariance.
FEWER_STEPS = {"SOAP": 1}
LR = 0.05  # a change of a parameter far above its rounding
# Allowed of a tensor's largest value, a step: float32 rounds where float64 does not; a 16-bit number may be one step of
# its format off where the two round apart, and either neighbour with stochastic rounding.
OF_VALUE = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7, "bfloat16_stochastic": 2.0**-6}
# Allowed of the change by a matrix optimizer, in the Frobenius norm: its products round to bfloat16, or it iterates.
OF_CHANGE = 0.05
# SOAP divides rounding errors by themselves where a rotated gradient is zero, unless eps is above them.
MATRIX_HYPER: dict[str, dict[str, Any]] = {"SOAP": {"eps": 1e-2}}


class ParityError(Exception):
    """A kernel does not agree with the reference."""


def check(optimizer: str, storage: str, device: str) -> None:
    """Compares ours on the device with the reference after two steps, of SOAP one.

    Args:
        optimizer: a name of `rlx_gpu.TABLE`.
        storage: a key of STORAGES that ours has.
        device: "cuda", or "cpu" for what would run there.

    Raises:
        ParityError: they differ by more than rounding; names the optimizer, the storage and the tensor.
    """
    import torch

    formats = STORAGES[storage]
    hyper = {**HYPER, "lr": LR, **OWN_HYPER.get(optimizer, {}), **MATRIX_HYPER.get(optimizer, {})}
    options = dict(formats.ours or {})
    mine = getattr(rlx_gpu, optimizer)(**hyper, **options, device=device)
    options.pop("rounding", None)
    theirs = getattr(rlx_gpu.reference, optimizer)(**hyper, **options)
    dtype, random = getattr(torch, formats.param), torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    before = {str(shape): draw(shape) for shape in SHAPES}
    params = {name: value.clone().to(device) for name, value in before.items()}
    wanted = {name: value.double().numpy() for name, value in before.items()}
    for _ in range(FEWER_STEPS.get(optimizer, STEPS)):
        grads = {name: draw(tuple(value.shape)) for name, value in before.items()}
        mine.step_batch([(name, value.shape, value, grads[name].to(device)) for name, value in params.items()])
        mine.end_iteration()
        for name, value in wanted.items():
            theirs.step(name, value.shape, value, grads[name].double().numpy())
            value[...] = round_to(value, formats.param)
        theirs.end_iteration()
    for name, value in wanted.items():
        found = params[name].double().cpu().numpy()
        start = before[name].double().numpy()
        wrong = difference(optimizer, storage, found, value, start)
        if wrong:
            raise ParityError(
                f"{optimizer} in {storage} on {device}: tensor {name} differs from the reference: {wrong}"
            )


def difference(
    optimizer: str, storage: str, found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], start: np.ndarray[Any, Any]
) -> str:
    """In words how far a tensor is off, beyond what rounding explains; empty if it is not."""
    error = np.abs(found - wanted)
    of_value = STEPS * OF_VALUE.get(storage, OF_VALUE[STORAGES[storage].param])
    if is_matrix_optimizer(optimizer):
        norm = np.linalg.norm
        change = float(norm(found - wanted) / norm(wanted - start))
        allowed = OF_CHANGE + of_value * float(norm(wanted) / norm(wanted - start))
        return "" if change <= allowed else f"by {change:.1e} of its change, allowed {allowed:.1e}"
    worst, allowed = float(error.max()), of_value * float(np.abs(wanted).max())
    return "" if worst <= allowed else f"by {worst:.1e}, allowed {allowed:.1e}"  # not so for NaN either


def is_matrix_optimizer(optimizer: str) -> bool:
    """Whether an optimizer treats matrices as such, by products and factorisations."""
    return any(hyper.name == "matrix" for hyper in rlx_gpu.TABLE[optimizer].hyperparameters)
