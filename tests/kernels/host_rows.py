"""The row of every rule as a host computes it: plain Python in float64, with libm's powers, one function a row."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np

from rlx_gpu.kernels.rules.adafactor import ROW as ADAFACTOR
from rlx_gpu.kernels.rules.kronpsgd import ROW as KRONPSGD
from rlx_gpu.kernels.rules.lamb import ROW as LAMB
from rlx_gpu.kernels.rules.lion import ROW as LION
from rlx_gpu.kernels.rules.mars import ROW as MARS
from rlx_gpu.kernels.rules.moments import ADAM_ROW
from rlx_gpu.kernels.rules.muon import ADAMW_ROW as MUON_ADAMW
from rlx_gpu.kernels.rules.muon import ROW as MUON
from rlx_gpu.kernels.rules.muon import SGD_ROW as MUON_SGD
from rlx_gpu.kernels.rules.nadamw import CONSTANT, SCHEDULE
from rlx_gpu.kernels.rules.qhadamw import ROW as QHADAMW
from rlx_gpu.kernels.rules.radam import ROW as RADAM
from rlx_gpu.kernels.rules.sgd import MOMENTUM_ROW
from rlx_gpu.kernels.rules.sgd import ROW as SGD
from rlx_gpu.kernels.rules.sophia import HESSIAN_ROW
from rlx_gpu.kernels.rules.sophia import ROW as SOPHIA
from rlx_gpu.kernels.spec import Row

Hyper = Mapping[str, Any]
Counters = MutableMapping[str, float]
MOST_RELATIVE_STEP = 1e-2


def moments(hyper: Hyper) -> tuple[float, ...]:
    """(β1, 1−β1, β2, 1−β2)."""
    beta1, beta2 = hyper["betas"]
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2


def corrections(hyper: Hyper, step: int) -> tuple[float, float]:
    """(1/bc1, 1/√bc2)."""
    beta1, beta2 = hyper["betas"]
    return 1.0 / (1.0 - beta1**step), 1.0 / math.sqrt(1.0 - beta2**step)


def adam(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(lr, λ, eps, β1, 1−β1, β2, 1−β2, 1/bc1, 1/√bc2)."""
    return hyper["lr"], hyper["weight_decay"], hyper["eps"], *moments(hyper), *corrections(hyper, step)


def lamb(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """Adam's, the corrections only where they are asked for."""
    own = corrections(hyper, step) if hyper["bias_correction"] else (1.0, 1.0)
    return hyper["lr"], hyper["weight_decay"], hyper["eps"], *moments(hyper), *own


def mars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """Adam's, then gamma·β1/(1−β1)."""
    beta1 = hyper["betas"][0]
    return *adam(hyper, step, counters), hyper["gamma"] * beta1 / (1.0 - beta1)


def lion(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(lr, λ, β1, 1−β1, β2, 1−β2)."""
    return hyper["lr"], hyper["weight_decay"], *moments(hyper)


def nadamw(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """β1/(1−β1^{t+1}) of m and (1−β1)/(1−β1^t) of g, then 1/√bc2."""
    beta1 = hyper["betas"][0]
    weights = beta1 / (1.0 - beta1 ** (step + 1)), (1.0 - beta1) / (1.0 - beta1**step)
    return hyper["lr"], hyper["weight_decay"], hyper["eps"], *moments(hyper), *weights, corrections(hyper, step)[1]


def nadamw_scheduled(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """μ_t = β1(1 − ½·0.96^{tψ}), and its product over all steps."""
    beta1, decay = hyper["betas"][0], hyper["momentum_decay"]
    current = beta1 * (1.0 - 0.5 * 0.96 ** (step * decay))
    following = beta1 * (1.0 - 0.5 * 0.96 ** ((step + 1) * decay))
    counters["mu_product"] *= current
    product = counters["mu_product"]
    weights = following / (1.0 - product * following), (1.0 - current) / (1.0 - product)
    return hyper["lr"], hyper["weight_decay"], hyper["eps"], *moments(hyper), *weights, corrections(hyper, step)[1]


def radam(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """Rectified from the first step at which ρ_t > threshold."""
    beta1, beta2 = hyper["betas"]
    bias_correction1, bias_correction2 = 1.0 - beta1**step, 1.0 - beta2**step
    rho_limit = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_limit - 2.0 * step * beta2**step / bias_correction2
    weights = (1.0 / bias_correction1, 0.0)
    if rho > hyper["threshold"]:
        excess = (rho - 4.0) * (rho - 2.0) * rho_limit / ((rho_limit - 4.0) * (rho_limit - 2.0) * rho)
        weights = (math.sqrt(excess * bias_correction2) / bias_correction1, 1.0)
    return hyper["lr"], hyper["weight_decay"], *moments(hyper), *weights, hyper["eps"]


def qhadamw(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """ν1/bc1, 1−ν1, ν2/bc2, 1−ν2 behind the moments."""
    (beta1, beta2), (nu1, nu2) = hyper["betas"], hyper["nus"]
    weights = (nu1 / (1.0 - beta1**step), 1.0 - nu1, nu2 / (1.0 - beta2**step), 1.0 - nu2)
    return hyper["lr"], hyper["weight_decay"], hyper["eps"], *moments(hyper), *weights


def sophia(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(lr, λ, β1, 1−β1, gamma, rho, eps)."""
    return hyper["lr"], hyper["weight_decay"], *moments(hyper)[:2], hyper["gamma"], hyper["rho"], hyper["eps"]


def sophia_hessian(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(β2, 1−β2)."""
    return moments(hyper)[2:]


def sgd(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(lr, λ)."""
    return hyper["lr"], hyper["weight_decay"]


def sgd_momentum(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(lr, λ, μ, 1 − dampening), the last 1 in the first step."""
    gain = 1.0 if step == 1 else 1.0 - hyper["dampening"]
    return hyper["lr"], hyper["weight_decay"], hyper["momentum"], gain


def adafactor(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(β2_t, 1−β2_t, eps1, eps2, clip_threshold, lr, relative lr, λ); one of the two rates is 0."""
    gain2 = float(step) ** hyper["beta2_decay"]
    lr, relative_lr = hyper["lr"], 0.0
    if lr is None:
        lr, relative_lr = 0.0, hyper["lr_scale"] * min(MOST_RELATIVE_STEP, 1.0 / math.sqrt(step))
    return 1.0 - gain2, gain2, *hyper["eps"], hyper["clip_threshold"], lr, relative_lr, hyper["weight_decay"]


def muon(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(lr, λ, μ, eps)."""
    return hyper["lr"], hyper["weight_decay"], hyper["momentum"], hyper["eps"]


def muon_sgd(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(lr, λ, μ) of the fallback."""
    return hyper["lr"] * hyper["fallback_lr_scale"], hyper["weight_decay"], hyper["momentum"]


def muon_adamw(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """AdamW's, with the fallback's lr and eps."""
    own = {"lr": hyper["lr"] * hyper["fallback_lr_scale"], "eps": hyper["fallback_eps"]}
    return adam({**hyper, **own}, step, counters)


def kronpsgd(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(lr, λ, 1 − βᵗ)."""
    return hyper["lr"], hyper["weight_decay"], 1.0 - hyper["momentum"] ** step


HOST_ROWS = {
    SGD: sgd,
    MOMENTUM_ROW: sgd_momentum,
    ADAM_ROW: adam,
    CONSTANT: nadamw,
    SCHEDULE: nadamw_scheduled,
    RADAM: radam,
    QHADAMW: qhadamw,
    LION: lion,
    SOPHIA: sophia,
    HESSIAN_ROW: sophia_hessian,
    LAMB: lamb,
    MARS: mars,
    ADAFACTOR: adafactor,
    MUON: muon,
    MUON_SGD: muon_sgd,
    MUON_ADAMW: muon_adamw,
    KRONPSGD: kronpsgd,
}


class Language:
    """What rows use of Triton's language, on single numbers."""

    exp, log, sqrt, abs = np.exp, np.log, np.sqrt, np.abs

    @staticmethod
    def where(condition: Any, yes: Any, no: Any) -> Any:
        return yes if condition else no


@functools.cache
def as_python(function: Any) -> Any:
    """A JIT function, and those that it calls, as a function of numbers."""
    fn = function.fn
    called = {name: fn.__globals__[name] for name in fn.__code__.co_names if name in fn.__globals__}
    own = {name: as_python(value) for name, value in called.items() if hasattr(value, "fn")}
    return types.FunctionType(fn.__code__, {**fn.__globals__, **own, "tl": Language})


def own_row(row: Row, hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """What the row's own function says, one tensor at a time and without Triton."""
    with np.errstate(all="ignore"):
        given = tuple(map(np.float64, row.hypers(hyper)))
        numbers, carried = as_python(row.scalars)(given, np.float64(step), tuple(map(np.float64, counters.values())))
    counters.update(zip(counters, carried, strict=True))
    return numbers


def host_row(row: Row, hyper: Hyper, step: int, counters: Counters) -> np.ndarray:
    """float32, each number rounded once; `counters` are carried on. A row that is not written out above is computed by
    its own function.
    """
    numbers = HOST_ROWS[row](hyper, step, counters) if row in HOST_ROWS else own_row(row, hyper, step, counters)
    return np.array(numbers, dtype=np.float64).astype(np.float32)
