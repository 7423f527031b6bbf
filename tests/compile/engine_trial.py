"""Runs every optimizer's engine against Triton's compiler with the launch itself left out; prints JSON.

No GPU: CPU tensors are declared the kernels' own, a stand-in driver names the target, and every launch is recorded or
becomes a `warmup`, which binds, specialises and compiles exactly as a launch would.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from rlx_gpu import optim
from rlx_gpu.compiled import variants as reported
from rlx_gpu.engine import devices, launch
from rlx_gpu.kernels.arithmetic import LAUNCH_OPTIONS
from rlx_gpu.parity.storages import Formats, find_storages
from rlx_gpu.parity.variants import Variant, variants
from rlx_gpu.table import TABLE

SCHEDULED = ("SOAP", "KronPSGD")  # with skip_nonfinite they wait for a word that nobody has computed


class Target:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


empty = torch.empty
planned = launch.Launch._compile
kernels: dict[str, Any] = {}


def compile_only(kernel: Any, programs: int | tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """In place of a launch."""
    grid = (programs,) if isinstance(programs, int) else programs
    if all(grid):
        kernels[kernel.__name__] = kernel
        kernel.warmup(*arguments, grid=grid, **{**LAUNCH_OPTIONS, **constants})


def stand_in(in_place_of_a_launch: Callable[..., None], compile_plans: Callable[..., None] = planned) -> None:
    """Has kernels step CPU tensors, and something else done where they would be launched, or compiled for a plan."""
    driver.set_active(Target())
    launch.Launch._compile = compile_plans  # type: ignore[method-assign]
    devices.interpreted = lambda: True
    launch.launch = in_place_of_a_launch
    torch.empty = lambda *given, **options: empty(*given, **options).zero_()  # nothing that a routine could choke on


def compiled() -> dict[str, int]:
    """How many variants of each kernel have been compiled in this process."""
    return {name: len(kernel.device_caches[0][0]) for name, kernel in kernels.items()}


def step(
    name: str, shapes: list[tuple[int, ...]], *dtypes: tuple[torch.dtype, torch.dtype], **hyper: Any
) -> torch.optim.Optimizer:
    """A fresh optimizer, stepped once.

    Args:
        name: of the optimizer.
        shapes: of the parameters.
        dtypes: of parameters and gradients, each pair for all shapes; float32 without one.
        hyper: its arguments.
    """
    params = []
    for own, grad in dtypes or ((torch.float32, torch.float32),):
        for shape in shapes:
            params.append(torch.nn.Parameter(torch.zeros(shape, dtype=own)))
            params[-1].grad = torch.zeros(shape, dtype=grad)
    optimizer = getattr(optim, name)(params, **hyper)
    optimizer.step()
    return optimizer


def trial(name: str) -> dict[str, Any]:
    """Variants compiled for a plan whose launches are left out, by a first step, and after everything that must not
    matter has changed.
    """
    hyper: dict[str, Any] = {} if name == "Adafactor" else {"lr": 1e-3}
    hyper["skip_nonfinite"] = name not in SCHEDULED
    stand_in(lambda kernel, *others, **constants: kernels.setdefault(kernel.__name__, kernel))
    step(name, [(4, 8), (5,), (4, 8), (7,)], **hyper, weight_decay=0.1)
    in_plan = compiled()
    stand_in(compile_only)
    optimizer = step(name, [(4, 8), (5,), (4, 8), (7,)], **hyper, weight_decay=0.1)
    first = compiled()
    group = optimizer.param_groups[0]
    for lr, weight_decay in ((2e-3, 0.1), (0.0, 0.0), (1.0, 0.2), (torch.tensor(0.5), 0.2)):
        group.update(lr=lr, weight_decay=weight_decay)
        optimizer.step(grad_scale=0.5)
    for absent in group["params"]:
        kept, absent.grad = absent.grad, None
        optimizer.step()
        absent.grad = kept
    step(name, [(4, 8), (5,), (16, 16), (1025,), (3, 3, 3), (128, 256)], **hyper, weight_decay=0.3)
    return {"planned": in_plan, "first": first, "later": compiled()}


def sums_of_two_formats() -> list[int]:
    """Variants of the kernel that finishes sums, before and after a guarded step with gradients of two formats."""
    before = compiled()["finish_sums_kernel"]
    both = ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16))
    step("SGD", [(5,)], *both, lr=1e-3, skip_nonfinite=True)
    return [before, compiled()["finish_sums_kernel"]]


def unlike_the_report() -> dict[str, list[str]]:
    """What steps launch and the report lacks, what only the report has, and what it has twice; but matrix kernels."""
    made: dict[Any, str] = {}
    now = ""

    def record(kernel: Any, programs: int | tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        made.setdefault((kernel, frozenset(constants.items())), f"{kernel.__name__} of {now}")

    stand_in(record, lambda one: None)
    for algorithm in TABLE.values():
        for formats in find_storages():
            for variant in variants(algorithm):
                now = f"{variant} in {formats}"
                run(variant, formats)
    clipped = {"max_grad_norm": 1.0}
    for options in (clipped, {**clipped, "skip_nonfinite": True}, {"fused": True}):
        now = f"SGD with {options}"
        optimizer = step("SGD", [(5,)], lr=1e-3, **options)
        optimizer.found_inf = torch.tensor(0.0)
        optimizer.step()
    matrix = {one.kernel for one in reported.variants() if one.family == "matrix"}
    listed: dict[Any, list[str]] = {}
    exactly: dict[Any, list[str]] = {}
    for one in reported.variants():
        if one.kernel not in matrix:
            key, name = (one.kernel, frozenset(one.constants.items())), f"{one.name} {one.dtype}"
            listed.setdefault(key, []).append(name)
            exactly.setdefault((key, frozenset(one.arguments.items())), []).append(name)
    return {
        "launched": [name for key, name in made.items() if key not in listed and key[0] not in matrix],
        "reported": [names[0] for key, names in listed.items() if key not in made],
        "twice": [" and ".join(names) for names in exactly.values() if len(names) > 1],
    }


def run(variant: Variant, formats: Formats) -> None:
    """A step of a matrix, a vector and a tensor of three dimensions in one storage.

    Batches of matrices have the default's format, the only one in the report.
    """
    name, specs = variant.algorithm.name, variant.algorithm.rules.SPECS
    batch_dtypes = {getattr(spec, "batch_dtype", None) for spec in specs}
    hyper = {key: value for key, value in variant.hyper.items() if key not in batch_dtypes}
    dtypes = getattr(torch, formats.param), getattr(torch, formats.grad)
    options = {"state_dtype": formats.state, "rounding": formats.rounding, "skip_nonfinite": name not in SCHEDULED}
    optimizer = step(name, [(4, 8), (5,), (2, 3, 4)], dtypes, **{**hyper, **options})
    if hasattr(optimizer, "update_hessian"):
        params = optimizer.param_groups[0]["params"]
        optimizer.update_hessian(params, [param.grad for param in params])


def main() -> None:
    """Print what every optimizer compiled, and how the report differs from what is launched."""
    differing = unlike_the_report()
    stand_in(compile_only)
    trials = {name: trial(name) for name in TABLE}
    print(json.dumps({"trials": trials, "sums": sums_of_two_formats(), "unlike the report": differing}))


if __name__ == "__main__":
    main()
