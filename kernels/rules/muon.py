"""Muon (Jordan et al. 2024): what lies before and after the orthogonalisation, and its fallbacks."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  (the interpreter looks for it beside every JIT function)

from ..arithmetic import divide, square_root
from ..spec import Counters, Hyper, MatrixSpec, Pass, RuleSpec
from . import adamw
from .matrices import is_matrix

BUFFER = ("momentum_buffer",)


@triton.jit
def momentum_rule(param, grad, state, hyper):
    """M ← μM + g, and the terms of ‖M‖²."""
    momentum_buffer = hyper[2] * state[0] + grad
    return param, (momentum_buffer,), (momentum_buffer * momentum_buffer,)


@triton.jit
def normalize_rule(param, grad, state, hyper):
    """X = M/(‖M‖ + eps)."""
    return divide(state[0], square_root(hyper[4]) + hyper[3]), state


@triton.jit
def nesterov_momentum_rule(param, grad, state, hyper):
    """M ← μM + g, and the terms of ‖U‖² with U = g + μM."""
    momentum_buffer = hyper[2] * state[0] + grad
    update = grad + hyper[2] * momentum_buffer
    return param, (momentum_buffer,), (update * update,)


@triton.jit
def nesterov_normalize_rule(param, grad, state, hyper):
    """X = U/(‖U‖ + eps) with U = g + μM."""
    return divide(grad + hyper[2] * state[0], square_root(hyper[4]) + hyper[3]), state


@triton.jit
def sgd_rule(param, grad, state, hyper):
    """M ← μM + g; θ ← θ − lr(M + λθ)."""
    momentum_buffer = hyper[2] * state[0] + grad
    return param - hyper[0] * (momentum_buffer + hyper[1] * param), (momentum_buffer,)


@triton.jit
def nesterov_sgd_rule(param, grad, state, hyper):
    """M ← μM + g; θ ← θ − lr(g + μM + λθ)."""
    momentum_buffer = hyper[2] * state[0] + grad
    return param - hyper[0] * (grad + hyper[2] * momentum_buffer + hyper[1] * param), (momentum_buffer,)


def scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(lr, λ, μ, eps)."""
    return hyper["lr"], hyper["weight_decay"], hyper["momentum"], hyper["eps"]


def fallback_lr(hyper: Hyper) -> float:
    """The lr of parameters that are no matrices."""
    return float(hyper["lr"] * hyper["fallback_lr_scale"])


def sgd_scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """(lr, λ, μ) of the fallback."""
    return fallback_lr(hyper), hyper["weight_decay"], hyper["momentum"]


def adamw_scalars(hyper: Hyper, step: int, counters: Counters) -> tuple[float, ...]:
    """AdamW's, with the fallback's lr and eps."""
    return adamw.PLAIN.scalars({**hyper, "lr": fallback_lr(hyper), "eps": hyper["fallback_eps"]}, step, counters)


def _orthogonal_input(name: str, momentum: object, normalize: object) -> RuleSpec:
    """The two passes that write X, as the stream of the parameter, from gradient and momentum."""
    return RuleSpec(name, BUFFER, (Pass(momentum, BUFFER, sums=1), Pass(normalize, ("param",))), scalars)


MOMENTUM = _orthogonal_input("muon_momentum", momentum_rule, normalize_rule)
NESTEROV = _orthogonal_input("muon_nesterov", nesterov_momentum_rule, nesterov_normalize_rule)
SGD = RuleSpec("muon_sgd", BUFFER, (Pass(sgd_rule, ("param", *BUFFER)),), sgd_scalars)
NESTEROV_SGD = RuleSpec("muon_nesterov_sgd", BUFFER, (Pass(nesterov_sgd_rule, ("param", *BUFFER)),), sgd_scalars)
ADAMW = RuleSpec("muon_adamw", adamw.PLAIN.slots, adamw.PLAIN.passes, adamw_scalars)
SPECS = (MOMENTUM, NESTEROV, SGD, NESTEROV_SGD, ADAMW)
MUON = MatrixSpec("muon", "muon", BUFFER, scalars, scheduled=False)


def select(hyper: Hyper, ndim: int) -> RuleSpec | MatrixSpec:
    """Matrices are orthogonalised; the rest takes AdamW or momentum."""
    if is_matrix(hyper, ndim):
        return MUON
    if hyper["fallback"] == "adamw":
        return ADAMW
    return NESTEROV_SGD if hyper["nesterov"] else SGD
