"""Newton–Schulz: the nearest semi-orthogonal matrix by products alone, in the form that costs least."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from ..checks import runs_kernels
from ..reference.newton_schulz import EPS, Coefficients, Triple, schedule
from ..state import is_dense
from .products import full_float32, symmetric_product

Triples = Sequence[Triple]
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_ELEMENTS = 2**27  # of one chunk of a batch: bounds the buffers
RUN = 2  # the Gram form's steps between two returns to X


class Crossover(NamedTuple):
    """Where a form begins to win, on a GPU.

    Five steps on m × n take 20m²n + 10m³ (plain), 15m²n + 5m³ (symmetric) and 9m²n + 17m³ (Gram, whose products of two
    different factors are general ones) operations. Gram's are the fewest from n = 2m on; its smaller products and its
    additional rounding want a margin, and float32, asked for its accuracy, is spared them. The symmetric product
    computes half the tiles, and wins where that half still fills the GPU.
    """

    rows: int  # least m for the symmetric form
    area: int  # least m² over the whole batch for the symmetric form
    gram: float  # least n/m for the Gram form


CROSSOVERS = {
    torch.float16: Crossover(rows=1024, area=1024**2, gram=4.0),
    torch.bfloat16: Crossover(rows=1024, area=1024**2, gram=4.0),
    torch.float32: Crossover(rows=512, area=1024**2, gram=math.inf),
}


def form(m: int, n: int, batch: int, dtype: torch.dtype, device: torch.device, triples: Triples) -> str:
    """Which form iterates matrices of m × n, m ≤ n, with these coefficients: "plain", "symmetric" or "gram"."""
    if not runs_kernels(device):
        return "plain"
    crossover = CROSSOVERS[dtype]
    if n >= crossover.gram * m and tolerant(tuple(triples), torch.finfo(dtype).eps / 2):
        return "gram"
    return "symmetric" if m >= crossover.rows and batch * m * m >= crossover.area else "plain"


@functools.cache
def tolerant(triples: tuple[Triple, ...], error: float) -> bool:
    """Whether singular values from [0, 1] stay in range if each step makes them larger by this relative error.

    Rounding Q in the Gram form scales whole rows of X, and so its singular values; "cans", whose polynomials end where
    they begin to grow without bound, diverges in bfloat16.
    """

    def largest(error: float) -> float:
        bound = 1.0
        for a, b, c in triples:
            x = bound * np.linspace(0.0, 1.0, 1001)
            bound = min((1.0 + error) * float(np.abs(a * x + b * x**3 + c * x**5).max()), 1e30)
        return bound

    return largest(error) <= 2.0 * largest(0.0)


def newton_schulz(
    x: torch.Tensor,
    steps: int = 5,
    coefficients: Coefficients = "keller",
    *,
    dtype: torch.dtype | None = None,
    eps: float = 1e-7,
) -> torch.Tensor:
    """Pushes every singular value of each matrix towards 1.

        X = x/(‖x‖ + eps), ‖·‖ Frobenius, transposed if rows > columns
        each step, with (a, b, c):  A = XXᵀ,  X ← aX + (bA + cA²)X

    The norm is taken in float32 of the matrix over its largest entry, so that no square overflows or vanishes. Beside
    the result this takes the memory of one more x in float32 and of two m × m per matrix, m its shorter side.

    Args:
        x: float16, bfloat16 or float32 [..., m, n]; left as it is. A tall matrix is iterated through its transposed
            view.
        steps: in [1, 100].
        coefficients: "keller", "quintic", "polar_express", "cans", or a list of triples (a, b, c); its last goes on.
            "cans" leaves no room for bfloat16's rounding and can diverge in it.
        dtype: the format of the iteration, float16, bfloat16 or float32; None: that of x.
        eps: > 0, for matrices of zeros.

    Returns:
        A tensor of x's shape and dtype.

    Raises:
        TypeError: x is not a dense float tensor, or a dtype is none of the three.
        ValueError: x has fewer than two dimensions, or steps, coefficients or eps are out of range.

    Source: Jordan et al. 2024 (Muon), after Kovarik 1970 and Björck & Bowie 1971.
    """
    dtype = _check(x, dtype)
    triples, eps = schedule(coefficients, steps), EPS.check(eps)
    if x.numel() == 0:
        return x.clone()
    matrices = normalize_(x.detach().reshape(-1, *x.shape[-2:]).to(torch.float32, copy=True), eps).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    result = orthogonalize_(matrices.mT if tall else matrices, triples)
    return (result.mT if tall else result).to(x.dtype).reshape(x.shape)


def normalize_(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x/(‖x‖ + eps), eps > 0, of each matrix of a float32 [B, m, n], in place."""
    peak = torch.linalg.vector_norm(x, float("inf"), dim=(-2, -1), keepdim=True)
    peak = torch.where(peak == 0.0, 1.0, peak)
    x.div_(peak)
    return x.div_(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + eps / peak)


def orthogonalize_(x: torch.Tensor, triples: Triples) -> torch.Tensor:
    """Iterates matrices [B, m, n], m ≤ n, whose singular values are at most 1, in their own dtype.

    Each of B matrices takes one more m × n and two m × m while its chunk of at most MOST_ELEMENTS is iterated.

    Args:
        x: float16, bfloat16 or float32, possibly a transposed view; its contents are lost.
        triples: (a, b, c) of each step.

    Returns:
        The result, in x or in a buffer of x's layout.
    """
    batch, m, n = x.shape
    iterate = FORMS[form(m, n, batch, x.dtype, x.device, triples)]
    most = max(1, MOST_ELEMENTS // (m * n))
    with full_float32() if x.dtype == torch.float32 else nullcontext():
        if batch <= most:
            return iterate(x, triples)
        for chunk in torch.split(x, most):
            chunk.copy_(iterate(chunk, triples))
    return x


def _iterate(x: torch.Tensor, triples: Triples, product: Callable[..., Any]) -> torch.Tensor:
    """The iteration as it stands, with `product` for XXᵀ and bA + cA²."""
    spare = torch.empty_like(x)
    gram, polynomial = x.new_empty((2, len(x), x.shape[1], x.shape[1]))
    for a, b, c in triples:
        product(x, out=gram)
        product(gram, out=polynomial, alpha=c, beta=b, c=gram)
        torch.baddbmm(x, polynomial, x, beta=a, out=spare)
        x, spare = spare, x
    return x


def _general_product(
    x: torch.Tensor, *, out: torch.Tensor, alpha: float = 1.0, beta: float = 0.0, c: torch.Tensor | None = None
) -> torch.Tensor:
    """`symmetric_product` by a general one."""
    return torch.baddbmm(out if c is None else c, x, x.mT, beta=beta, alpha=alpha, out=out)


def _gram(x: torch.Tensor, triples: Triples) -> torch.Tensor:
    """The iteration on R = XXᵀ, n ≥ 2m, which only now and then returns to X.

        R = XXᵀ, Q = I;  each step: Z = bR + cR², Q ← QZ + aQ, P = RZ + aR, R ← ZP + aP;  after RUN steps: X ← QX

    Rounding leaves R with eigenvalues slightly below 0, which each step multiplies by a², 12 and more: in runs of three
    steps bfloat16 can diverge. In runs of two its error is up to four times the
    plain form's.
    """
    x = x if is_dense(x) else x.contiguous()
    batch, m, _ = x.shape
    spare = torch.empty_like(x)
    square = (batch, m, m)
    r, q = x.new_empty((2, *square))
    for start in range(0, len(triples), RUN):
        # Until X ← QX, the buffer it goes to is idle: room for two squares.
        z, t = spare.as_strided((2, *square), (batch * m * m, m * m, m, 1))
        symmetric_product(x, out=r)
        torch.bmm(_run(triples[start : start + RUN], r, q, z, t), x, out=spare)
        x, spare = spare, x
    return x


def _run(triples: Triples, r: torch.Tensor, q: torch.Tensor, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Q of the Gram form after these steps, from R in r; in r or q. All four buffers are overwritten."""
    for index, (a, b, c) in enumerate(triples):
        last = index == len(triples) - 1
        symmetric_product(r, out=z, alpha=c, beta=b, c=r)
        if index == 0:
            q.copy_(z).diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            target = r if last else t
            torch.baddbmm(q, q, z, beta=a, out=target)
            q, t = target, q
        if not last:
            torch.baddbmm(r, r, z, beta=a, out=t)
            torch.baddbmm(t, z, t, beta=a, out=r)
    return q


FORMS: dict[str, Callable[[torch.Tensor, Triples], torch.Tensor]] = {
    "plain": partial(_iterate, product=_general_product),
    "symmetric": partial(_iterate, product=symmetric_product),
    "gram": _gram,
}


def _check(x: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The format of the iteration; refuses what cannot be iterated."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"newton_schulz: x must be a torch.Tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"newton_schulz: x has layout {x.layout}, must be torch.strided (dense)")
    names = ", ".join(str(one).removeprefix("torch.") for one in DTYPES)
    for label, given in (("x has dtype", x.dtype), ("dtype is", dtype)):
        if given is not None and given not in DTYPES:
            raise TypeError(f"newton_schulz: {label} {given}, must be one of {names}")
    if x.ndim < 2:
        raise ValueError(f"newton_schulz: x has shape {tuple(x.shape)}, must have at least two dimensions")
    return dtype or x.dtype
