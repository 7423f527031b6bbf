"""KronPSGD on batches: momentum whitened by two learned factors, without an inverse or a factorisation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .products import full_float32, matmul, symmetric_product
from .step import MatrixStep, Selection

MOST_ELEMENTS = 2**28  # that are prepared at a time
BALANCE_PERIOD = 100  # updates of the factors
LEAST_SHARE = 0.03  # of the steps that update the factors, reached after 4,006
CREDIT = np.cumsum([0.0, *(min(max(math.exp(-0.001 * (t - 500)), LEAST_SHARE), 1.0) for t in range(1, 4008))])


@dataclass(frozen=True)
class Side:
    """The factor Q [B, d, d], or [B, d] where it is diagonal, of one side of every matrix: 1 (rows) or 2 (columns).

    `lipschitz` float32 [B] is 0 until the factor's first update.
    """

    dim: int
    factor: torch.Tensor
    lipschitz: torch.Tensor

    @property
    def dense(self) -> bool:
        """Whether Q is a matrix."""
        return self.factor.ndim == 3

    @property
    def diagonal(self) -> torch.Tensor:
        """Q's diagonal, a view."""
        return self.factor.diagonal(dim1=1, dim2=2) if self.dense else self.factor


def direction(grad: torch.Tensor, state: Mapping[str, torch.Tensor], step: MatrixStep) -> torch.Tensor:
    """The update of a batch of equal matrices, or of equal vectors with one diagonal factor each.

        M ← βM + (1 − β)g,  M̂ = M/(1 − βᵗ)
        P = Q_Lᵀ Q_L M̂ Q_Rᵀ Q_R;  in some steps (`factor_updates`) an update of Q_L and Q_R from P (`fit`), then P anew
        U = P / max(1, RMS(P)/clip_update_rms)

    A factor is k·I at every gradient that is not zero until its first update, and a zero gradient leaves it alone.
    Beyond `grad` and the state, a step holds one more [B, m, n] and one QᵀQ at a time; an update of the factors, side
    after side, three [B, d, d]; where factors are bfloat16 one [B, d, d] more, and copies of the matrices to update
    where those do not lie side by side. Decisions that depend on gradients are taken on the device.

    Args:
        grad: float32, or float64 on the CPU, [B, m, n] or [B, d], any strides; overwritten.
        state: slots `exp_avg` (grad's shape, float32 or bfloat16) and `left_factor`, `right_factor`, `left_lipschitz`,
            `right_lipschitz`, or for vectors `factor` and `lipschitz` (as in `Side`); updated in place. Factors and
            momentum are rounded to their storage before they are used.
        step: `momentum`, `precond_lr`, `precond_beta`, `clip_update_rms`, the steps, and the row's bias correction.

    Returns:
        U, in the memory of `grad`.

    Source: Li 2018 (arXiv 1512.04202), Li 2024 (arXiv 2402.11858).
    """
    if grad.ndim == 2:  # a vector is a column with a factor on its rows
        moment, exp_avg = grad.unsqueeze(2), state["exp_avg"].unsqueeze(2)
        sides = [Side(1, state["factor"], state["lipschitz"])]
    else:
        moment, exp_avg = grad, state["exp_avg"]
        names = ("left", "right")
        sides = [Side(i, state[f"{name}_factor"], state[f"{name}_lipschitz"]) for i, name in enumerate(names, 1)]

    hyper = step.hyper
    present = largest(moment) != 0  # true of a NaN
    store(exp_avg, slice(None), wide(exp_avg).lerp_(moment, 1 - hyper["momentum"]))
    correction = over(step.columns("bias_correction"))
    torch.div(exp_avg, correction, out=moment)
    initialize_(sides, moment, present)

    counts = [(factor_updates(t - 1), factor_updates(t)) for t in step.steps]
    for where in chosen(step, [before < after for before, after in counts]):
        some = [Side(side.dim, side.factor[where], side.lipschitz[where]) for side in sides]
        whitened = precondition_(moment[where], some)
        for side in sides:
            fit(side, where, whitened, present[where], hyper["precond_lr"], hyper["precond_beta"])
        torch.div(exp_avg, correction, out=moment)
    if len(sides) == 2:
        for where in chosen(step, [before < after and after % BALANCE_PERIOD == 0 for before, after in counts]):
            balance(sides, where, present[where])

    precondition_(moment, sides)
    largest_norm = hyper["clip_update_rms"] * math.sqrt(math.prod(moment.shape[1:]))
    moment.div_(over((torch.linalg.vector_norm(moment, dim=(1, 2)) / largest_norm).clamp_min_(1.0)))
    return grad


def initialize_(sides: Sequence[Side], moment: torch.Tensor, present: torch.Tensor) -> None:
    """Where a factor has not been updated yet: Q = k·I with k = (mean M̂⁴)^(−1/16), ^(−1/8) where it is the only one."""
    tiny = torch.finfo(moment.dtype).tiny
    scale = largest(moment).clamp_min_(tiny)  # apart, lest the fourth power vanish
    power_mean = torch.linalg.vector_norm(moment / over(scale), 4, dim=(1, 2)) * (math.prod(moment.shape[1:]) ** -0.25)
    k = (power_mean * scale).clamp_min_(tiny) ** (-0.5 / len(sides))
    fresh = present & (sides[0].lipschitz == 0)
    for side in sides:
        side.diagonal.copy_(torch.where(fresh[:, None], k[:, None], side.diagonal))


def precondition_(x: torch.Tensor, sides: Sequence[Side]) -> torch.Tensor:
    """Q_Lᵀ Q_L X Q_Rᵀ Q_R, in the memory of X."""
    source = x
    for side in sides:
        target = x if side is sides[-1] else torch.empty_like(x)
        if not side.dense:
            torch.mul(source, wide(side.factor).square().unsqueeze(3 - side.dim), out=target)
        else:
            gram = symmetric_product(wide(side.factor).mT)
            first, second = (gram, source) if side.dim == 1 else (source, gram)
            matmul(first, second, out=target)
        source = target
    return x


def fit(side: Side, where: Selection, whitened: torch.Tensor, present: torch.Tensor, rate: float, decay: float) -> None:
    """One update of the factors `where` says from their P; those not `present` stay.

    T = PPᵀ or PᵀP (its diagonal for a diagonal factor),  c = numel/d,  ℓ = bound(T) + c
    lipschitz ← max(precond_beta · lipschitz + (1 − precond_beta)ℓ, ℓ)
    Q ← Q − precond_lr/lipschitz · (T − cI)Q;  a dense Q then takes a step toward symmetric
    """
    factor, dim = wide(side.factor[where]), side.dim
    target = whitened.shape[3 - dim]
    if side.dense:
        covariance = symmetric_product(whitened if dim == 1 else whitened.mT)
        scale = unit_(covariance)
        curvature = growth(covariance) * scale + target
    else:
        covariance = torch.linalg.vector_norm(whitened, dim=3 - dim).square_()
        curvature = covariance.amax(1) + target

    before = side.lipschitz[where]
    lipschitz = torch.maximum(torch.lerp(curvature, before, decay), curvature)
    side.lipschitz[where] = torch.where(present, lipschitz, before)
    step = torch.where(present, rate / lipschitz, 0.0)
    if side.dense:
        product = matmul(covariance, factor)
        factor.mul_(over(1 + step * target)).addcmul_(product, over(step * scale), value=-1)
        symmetrize_(factor, present, covariance, product)
    else:
        factor.mul_(1 - step[:, None] * (covariance - target))
    store(side.factor, where, factor)


def symmetrize_(q: torch.Tensor, present: torch.Tensor, skew: torch.Tensor, product: torch.Tensor) -> None:
    """Turns Q, where `present`, one step toward the symmetric matrix with the same QᵀQ; both others are workspaces.

        S = Qᵀ − Q,  S ← S/bound(S)
        a = min(⅛, −tr(SQ)/tr(SSQ))  if tr(SSQ) < 0,  ⅛  otherwise
        Q ← Q + a(SQ + ½a·SSQ) = Q + aS(Q + ½a·SQ)

    With S unscaled tr(SQ) = ½‖S‖², a sum without cancellation, and with any skew S tr(SSQ) = −ΣS⊙SQ.
    """
    torch.sub(q.mT, q, out=skew)
    scale, size = unit_(skew), growth(skew)
    size.masked_fill_(size == 0, 1.0)  # S is scale·skew, and skew/size after its division by the bound
    matmul(skew, q, out=product)
    slope = 0.5 * scale * size * torch.linalg.vector_norm(skew, dim=(1, 2)).square_()
    curve = (skew * product).sum((1, 2))  # both traces, times size²
    step = torch.where(curve > 0, (slope / curve).clamp_max_(0.125), 0.125) / size
    step = over(torch.where(present, step, 0.0))
    q.addcmul_(matmul(skew, product.mul_(0.5 * step).add_(q)), step)


def unit_(a: torch.Tensor) -> torch.Tensor:
    """Divides each matrix by its max|·|, which it returns; zeros stay."""
    scale = largest(a)
    a.div_(over(scale.masked_fill(scale == 0, 1.0)))
    return scale


def growth(a: torch.Tensor) -> torch.Tensor:
    """A lower bound, mostly tight, of the spectral norms of symmetric or skew matrices with max|·| = 1.

    From x = the row of largest norm, twice: x ← xA, x ← x/‖x‖, x ← xA; then ‖x‖.
    """
    row = torch.linalg.vector_norm(a, dim=2).argmax(1)
    x = torch.take_along_dim(a, over(row), dim=1)
    with full_float32():  # a single row moves A and hardly multiplies: no work for tiles
        for _ in range(2):
            x = torch.bmm(x, a)
            norm = torch.linalg.vector_norm(x, dim=2, keepdim=True)
            x = torch.bmm(x.div_(norm.masked_fill_(norm == 0, 1.0)), a)
    size: torch.Tensor = torch.linalg.vector_norm(x, dim=(1, 2))
    return size


def balance(sides: Sequence[Side], where: Selection, present: torch.Tensor) -> None:
    """Scales both factors to equal max|·|; the product of the two stays."""
    left, right = (largest(wide(side.factor[where])) for side in sides)
    usable = present & (left != 0) & (right != 0)
    ratio = torch.where(usable, (right / left).sqrt(), 1.0)
    for side, scale in zip(sides, (ratio, 1 / ratio), strict=True):
        side.factor[where] *= over(scale) if side.dense else scale[:, None]


def factor_updates(step: int) -> int:
    """How many updates of the factors steps 1 to `step` have made.

    A step counts with probability clamp(e^(−0.001(t−500)), 0.03, 1), read as a sum: it updates the factors where the
    sum passes a whole number.
    """
    last = len(CREDIT) - 1
    return int(CREDIT[min(step, last)] + LEAST_SHARE * max(step - last, 0))


def chosen(step: MatrixStep, flags: Sequence[bool]) -> list[Selection]:
    """The matrices whose flag is true: one selection, or none."""
    return [where for flag, where in step.groups(flags) if flag is True]


def store(slot: torch.Tensor, where: Selection, value: torch.Tensor) -> None:
    """Rounds a value into a slot, unless it is the slot's own memory."""
    if value.untyped_storage().data_ptr() != slot.untyped_storage().data_ptr():
        slot[where] = value


def wide(x: torch.Tensor) -> torch.Tensor:
    """The numbers of a slot in the format that a step computes in: float64 as they are, others in float32."""
    return x if x.dtype == torch.float64 else x.float()


def largest(x: torch.Tensor) -> torch.Tensor:
    """max|·| of each matrix or vector, [B]."""
    largest: torch.Tensor = torch.linalg.vector_norm(x, math.inf, dim=tuple(range(1, x.ndim)))
    return largest


def over(values: torch.Tensor) -> torch.Tensor:
    """One value per matrix, so that it broadcasts over the matrices."""
    return values[:, None, None]
