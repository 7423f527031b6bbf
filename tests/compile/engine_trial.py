"""Runs every optimizer's engine against Triton's compiler with the launch itself left out; prints JSON.

No GPU: CPU tensors are declared the kernels' own, a stand-in driver names the target, and every launch becomes a
`warmup`, which binds, specialises and compiles exactly as a launch would.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from rlx_gpu import checks, launch, optim, plan
from rlx_gpu.kernels.arithmetic import LAUNCH_OPTIONS
from rlx_gpu.table import TABLE


class Target:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


kernels: dict[str, Any] = {}


def compile_only(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """In place of a launch."""
    if programs:
        kernels[kernel.__name__] = kernel
        kernel.warmup(*arguments, grid=(programs,), **{**LAUNCH_OPTIONS, **constants})


def compiled() -> dict[str, int]:
    """How many variants of each kernel have been compiled in this process."""
    return {name: len(kernel.device_caches[0][0]) for name, kernel in kernels.items()}


def step(name: str, shapes: list[tuple[int, ...]], **hyper: Any) -> torch.optim.Optimizer:
    """A fresh optimizer, stepped once."""
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer = getattr(optim, name)(params, **hyper)
    optimizer.step()
    return optimizer


def trial(name: str) -> dict[str, Any]:
    """Variants compiled by a first step, and after everything that must not matter has changed."""
    hyper: dict[str, Any] = {} if name == "Adafactor" else {"lr": 1e-3}
    # Those that wait for the device with skip_nonfinite would read sums that nobody has computed.
    hyper["skip_nonfinite"] = name not in ("SOAP", "KronPSGD")
    optimizer = step(name, [(4, 8), (5,)], **hyper, weight_decay=0.1)
    first = compiled()
    group = optimizer.param_groups[0]
    for lr, weight_decay in ((2e-3, 0.1), (0.0, 0.0), (1.0, 0.2)):
        group.update(lr=lr, weight_decay=weight_decay)
        optimizer.step()
    step(name, [(4, 8), (5,), (16, 16), (1025,), (3, 3, 3), (128, 256)], **hyper, weight_decay=0.3)
    return {"first": first, "later": compiled()}


def main() -> None:
    """Print what every optimizer compiled."""
    driver.set_active(Target())
    launch.launch = compile_only
    for module in (checks, plan):
        module.runs_kernels = lambda device: True
    print(json.dumps({name: trial(name) for name in TABLE}))


if __name__ == "__main__":
    main()
