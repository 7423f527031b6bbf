"""What every launch of a step on one device reads, at addresses that stay from step to step."""

from __future__ import annotations

import torch

from ..kernels.spec import ROW_WIDTH
from .batch import Scaling
from .captured import Addresses
from .devices import number_dtype
from .tables import Array, send, upload

SCALE, SKIP = 0, 1  # the words


class DeviceNumber:
    """A number on a device that the host sets; written only where it may have changed."""

    def __init__(self, place: torch.Tensor, value: float) -> None:
        self.place = place.detach().reshape(1)
        self.known: float | None = value

    def set(self, value: float | torch.Tensor, *, always: bool = False) -> None:
        """Sets it in stream order: to a number, or to what a tensor of one element holds by then."""
        if isinstance(value, torch.Tensor):
            self.place.copy_(value.detach().reshape(1), non_blocking=True)
            self.known = None
        elif always or value != self.known:
            self.place.fill_(value)
            self.known = value


class StepInputs:
    """`words`, `grads` and `rows`, as `rlx_gpu.kernels.elementwise` has them, of `count` members on one device; and
    what the words may be computed from, `given`, as `rlx_gpu.kernels.words` has it.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self.device = device
        dtype = number_dtype(device)
        self.words = upload(torch.tensor([1.0, 0.0], dtype=dtype).numpy(), device)
        self.grads = torch.zeros(count, dtype=torch.int64, device=device)
        self.rows = torch.zeros((count, ROW_WIDTH), dtype=dtype, device=device)
        start = [1.0, 1.0, 0.0, torch.inf]
        self.given = upload(torch.tensor(start, dtype=dtype).numpy(), device)
        self.scale, self.skip = DeviceNumber(self.words[SCALE], 1.0), DeviceNumber(self.words[SKIP], 0.0)
        places = zip(self.given.unbind(), start, strict=True)
        self.factor, self.divisor, self.found_inf, self.max_norm = (DeviceNumber(*one) for one in places)
        self.addresses: Addresses | None = None

    def take(self, scaling: Scaling, *, computed: bool, always: bool) -> None:
        """Takes what is given for the next step; whether words are `computed` from it, and all is written `always`."""
        if not computed:
            self.scale.set(scaling.factor, always=always)
            self.skip.set(0.0, always=always)
            return
        self.factor.set(scaling.factor, always=always)
        self.divisor.set(1.0 if scaling.divisor is None else scaling.divisor, always=always)
        self.found_inf.set(0.0 if scaling.found_inf is None else scaling.found_inf, always=always)
        self.take_max_norm(scaling)

    def take_max_norm(self, scaling: Scaling) -> None:
        """Takes the norm that gradients are clipped to, if they are; no replay changes it, unlike the others."""
        if scaling.max_norm is not None:
            self.max_norm.set(scaling.max_norm)

    def knows_max_norm(self, scaling: Scaling) -> bool:
        """Whether it is the one that was taken last, if there is one."""
        return scaling.max_norm is None or self.max_norm.known == scaling.max_norm

    def distrust(self) -> None:
        """Has everything written anew at the next step: a replay may have been the last to write."""
        for number in (self.scale, self.skip, self.factor, self.divisor, self.found_inf):
            number.known = None

    def send_grads(self, addresses: Array, *, captured: bool) -> None:
        """Sends the gradients' addresses."""
        assert self.addresses is not None, "made as the plan was"
        if captured:
            self.grads.copy_(self.addresses.hold(addresses), non_blocking=True)
        else:
            send(addresses, self.grads)
            self.addresses.refill()

    def unguarded(self) -> StepInputs:
        """The same gradients for launches that are never skipped and take them unscaled."""
        inputs = StepInputs(self.device, 0)
        inputs.grads, inputs.rows = self.grads, self.rows
        return inputs
