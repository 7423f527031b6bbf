"""Muon (Jordan et al. 2024): what lies before and after the orthogonalisation, and its fallbacks."""

from __future__ import annotations

from ..arithmetic import divide, square_root
from ..language import tl, triton  # noqa: F401  (the interpreter looks for tl beside every JIT function)
from ..spec import Hyper, MatrixSpec, Pass, Row, RuleSpec
from . import adamw
from .matrices import APPLY, IN_WORKSPACE, is_matrix
from .moments import ADAM_NAMES, adam_scalars

BUFFER = ("momentum_buffer",)


@triton.jit
def momentum_rule(param, grad, state, hyper):
    """M ← μM + g, and the terms of ‖M‖²."""
    (momentum_buffer,) = state
    lr, weight_decay, momentum, eps = hyper
    momentum_buffer = momentum * momentum_buffer + grad
    return param, (momentum_buffer,), (momentum_buffer * momentum_buffer,)


@triton.jit
def normalize_rule(param, grad, state, hyper):
    """X = M/(‖M‖ + eps)."""
    (momentum_buffer,) = state
    lr, weight_decay, momentum, eps, norm_sq, numel = hyper
    return divide(momentum_buffer, square_root(norm_sq) + eps), state


@triton.jit
def nesterov_momentum_rule(param, grad, state, hyper):
    """M ← μM + g, and the terms of ‖U‖² with U = g + μM."""
    (momentum_buffer,) = state
    lr, weight_decay, momentum, eps = hyper
    momentum_buffer = momentum * momentum_buffer + grad
    update = grad + momentum * momentum_buffer
    return param, (momentum_buffer,), (update * update,)


@triton.jit
def nesterov_normalize_rule(param, grad, state, hyper):
    """X = U/(‖U‖ + eps) with U = g + μM."""
    (momentum_buffer,) = state
    lr, weight_decay, momentum, eps, norm_sq, numel = hyper
    return divide(grad + momentum * momentum_buffer, square_root(norm_sq) + eps), state


@triton.jit
def sgd_rule(param, grad, state, hyper):
    """M ← μM + g; θ ← θ − lr(M + λθ)."""
    (momentum_buffer,) = state
    lr, weight_decay, momentum = hyper
    momentum_buffer = momentum * momentum_buffer + grad
    return param - lr * (momentum_buffer + weight_decay * param), (momentum_buffer,)


@triton.jit
def nesterov_sgd_rule(param, grad, state, hyper):
    """M ← μM + g; θ ← θ − lr(g + μM + λθ)."""
    (momentum_buffer,) = state
    lr, weight_decay, momentum = hyper
    momentum_buffer = momentum * momentum_buffer + grad
    return param - lr * (grad + momentum * momentum_buffer + weight_decay * param), (momentum_buffer,)


@triton.jit
def scalars(hyper, step, counters):
    """(lr, λ, μ, eps)."""
    return hyper, counters


@triton.jit
def sgd_scalars(hyper, step, counters):
    """(lr, λ, μ) of the fallback."""
    lr, fallback_lr_scale, weight_decay, momentum = hyper
    return (lr * fallback_lr_scale, weight_decay, momentum), counters


@triton.jit
def adamw_scalars(hyper, step, counters):
    """AdamW's, with the fallback's lr and eps."""
    lr, fallback_lr_scale, weight_decay, eps, beta1, beta2 = hyper
    return adam_scalars((lr * fallback_lr_scale, weight_decay, eps, beta1, beta2), step, counters)


ROW = Row(("lr", "weight_decay", "momentum", "eps"), ("weight_decay", "momentum", "eps"), scalars)
SGD_ROW = Row(("lr", "weight_decay", "momentum"), ("fallback_lr_scale", "weight_decay", "momentum"), sgd_scalars)
ADAMW_ROW = Row(ADAM_NAMES, ("fallback_lr_scale", "weight_decay", "fallback_eps", "betas"), adamw_scalars)


def _prepare(name: str, momentum: object, normalize: object, reads: tuple[str, ...]) -> RuleSpec:
    """The two passes that write X, in the parameter's place, from gradient and momentum; the second's reads."""
    passes = (Pass(momentum, BUFFER, sums=1, reads=("grad", *BUFFER)), Pass(normalize, ("param",), reads=reads))
    return RuleSpec(name, BUFFER, passes, ROW, offsets=IN_WORKSPACE)


def _muon(name: str, prepare: RuleSpec) -> MatrixSpec:
    """The rule with its momentum."""
    return MatrixSpec(name, "muon", BUFFER, ROW, prepare, APPLY, scheduled=False, batch_dtype="ns_dtype")


MOMENTUM = _prepare("muon_momentum", momentum_rule, normalize_rule, BUFFER)
NESTEROV = _prepare("muon_nesterov", nesterov_momentum_rule, nesterov_normalize_rule, ("grad", *BUFFER))
SGD = RuleSpec("muon_sgd", BUFFER, (Pass(sgd_rule, ("param", *BUFFER)),), SGD_ROW)
NESTEROV_SGD = RuleSpec("muon_nesterov_sgd", BUFFER, (Pass(nesterov_sgd_rule, ("param", *BUFFER)),), SGD_ROW)
ADAMW = RuleSpec("muon_adamw", adamw.PLAIN.slots, adamw.PLAIN.passes, ADAMW_ROW)
PLAIN_MUON, NESTEROV_MUON = (
    MatrixSpec(name, "muon", BUFFER, ROW, prepare, APPLY, scheduled=False, batch_dtype="ns_dtype")
    for name, prepare in (("muon", MOMENTUM), ("muon_with_nesterov", NESTEROV))
)
SPECS = (PLAIN_MUON, NESTEROV_MUON, SGD, NESTEROV_SGD, ADAMW)


def select(hyper: Hyper, ndim: int) -> RuleSpec | MatrixSpec:
    """Matrices are orthogonalised; the rest takes AdamW or momentum."""
    if is_matrix(hyper, ndim):
        return NESTEROV_MUON if hyper["nesterov"] else PLAIN_MUON
    if hyper["fallback"] == "adamw":
        return ADAMW
    return NESTEROV_SGD if hyper["nesterov"] else SGD
