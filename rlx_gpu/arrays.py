"""Arrays of any library as tensors: the tensor itself, a view of the same memory, or a copy on the device."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from .engine.capture import refuse_capture

ON_CPU = 1  # DLPack's name of the device
VERSIONED, FLAGS, READ_ONLY = b"dltensor_versioned", 24, 1  # its capsules, where in their structure flags lie, one flag


class Arrays:
    """Makes tensors of what a trainer hands over; NumPy arrays go to `device`, into buffers that are kept."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._staged: dict[tuple[str, str], torch.Tensor] = {}

    def tensor(self, name: str, what: str, value: Any, shape: Iterable[int]) -> torch.Tensor:
        """The tensor that a step works on, as `what` ("param", "grad" or "estimate") of a parameter of this shape."""
        if isinstance(value, torch.Tensor):
            tensor = value.detach()
        elif isinstance(value, np.ndarray):
            tensor = self._staged_tensor(name, what, value)
        elif hasattr(value, "__dlpack__"):
            tensor = self._shared_tensor(name, what, value)
        else:
            raise TypeError(
                f"parameter {name!r}: {what} must be a torch tensor, a NumPy array or have __dlpack__, "
                f"got {type(value).__name__}"
            )
        try:
            expected = tuple(map(operator.index, shape))
        except TypeError:
            raise TypeError(f"parameter {name!r}: shape must be a tuple of whole numbers, got {shape!r}") from None
        if tuple(tensor.shape) != expected:
            raise ValueError(f"parameter {name!r}: {what} has shape {tuple(tensor.shape)}, expected {expected}")
        return tensor

    def _shared_tensor(self, name: str, what: str, value: Any) -> torch.Tensor:
        """An array of another library as a tensor of the same memory."""
        if value.__dlpack_device__()[0] != ON_CPU:
            return from_dlpack(value)
        try:
            try:
                capsule = value.__dlpack__(max_version=(1, 0))
            except TypeError:  # the library is older than versions are, and has no word for what is read-only
                capsule = value.__dlpack__()
        except BufferError as error:
            raise ValueError(f"parameter {name!r}: {what} cannot be shared: {error}") from None
        if what == "param" and _is_read_only(capsule):
            raise ValueError(f"parameter {name!r}: param is read-only")
        return from_dlpack(capsule)

    def _staged_tensor(self, name: str, what: str, value: np.ndarray[Any, Any]) -> torch.Tensor:
        """A NumPy array as a tensor: of the same memory on the CPU, a copy in a buffer that is kept on a GPU."""
        refuse_capture(f"parameter {name!r}: a NumPy array", "hand over tensors on the device")
        if what == "param" and not value.flags.writeable:
            raise ValueError(f"parameter {name!r}: param is read-only")
        if any(stride < 0 for stride in value.strides):
            raise ValueError(f"parameter {name!r}: {what} has negative strides {value.strides}; copy it first")
        try:
            tensor = torch.from_numpy(value if value.flags.writeable else value.copy())
        except (TypeError, ValueError):  # no such dtype in torch, or the bytes of another machine
            raise TypeError(f"parameter {name!r}: {what} must be a float array, got dtype {value.dtype!r}") from None
        if self.device.type == "cpu":
            return tensor
        staged = self._staged.get((name, what))
        if staged is None or staged.shape != tensor.shape or staged.dtype != tensor.dtype:
            staged = self._staged[name, what] = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        return staged.copy_(tensor)


def _is_read_only(capsule: Any) -> bool:
    """Whether a DLPack capsule says of its memory that it must not be written."""
    if not ctypes.pythonapi.PyCapsule_IsValid(ctypes.py_object(capsule), VERSIONED):
        return False
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return bool(ctypes.c_uint64.from_address(get(capsule, VERSIONED) + FLAGS).value & READ_ONLY)
