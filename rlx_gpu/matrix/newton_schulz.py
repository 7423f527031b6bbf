"""Newton–Schulz: the nearest semi-orthogonal matrix by products alone, in the form that costs least."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..engine.checks import refuse_wrapper
from ..engine.devices import on_host
from ..engine.memory import is_dense
from ..reference.newton_schulz import EPS, Coefficients, Triple, schedule
from .products import add_product, faster_side, full_float32, symmetric_product

Triples = Sequence[Triple]
MOST_ELEMENTS = 2**27  # of one chunk of a batch: bounds the buffers
# Where other forms than the plain one begin to win on a GPU that the batch fills: m² over the whole batch, and m for
# the symmetric form.
LEAST_AREA = 1024**2
LEAST_ROWS = {torch.float16: 1024, torch.bfloat16: 1024, torch.float32: 512}


def form(m: int, n: int, batch: int, dtype: torch.dtype, device: torch.device, triples: Triples) -> str:
    """Which form iterates matrices of m × n, m ≤ n, with these coefficients: "plain", "symmetric" or "gram".

    Five steps on m × n take 20m²n + 10m³ (plain), 15m²n + 5m³ (symmetric), 6m²n + 14m³ (Gram in two runs) and
    9m²n + 11m³ (Gram in three) operations: Gram's are the fewest from n = 2m on, where it also finds room for its
    buffers. Float32, asked for its accuracy, is spared its additional rounding.
    """
    if on_host(device) or batch * m * m < LEAST_AREA:
        return "plain"
    if dtype != torch.float32 and n >= 2 * m and tolerant(tuple(triples), torch.finfo(dtype).eps / 2.0):
        return "gram"
    return "symmetric" if m >= LEAST_ROWS[dtype] else "plain"


@functools.cache
def tolerant(triples: tuple[Triple, ...], error: float) -> bool:
    """Whether singular values from [0, 1] stay in range if each step makes them larger by this relative error.

    Rounding Q in the Gram form scales whole rows of X, and so its singular values; "cans", whose polynomials end where
    they begin to grow without bound, diverges in bfloat16.
    """
    return _bounds(triples, error)[-1] <= 2.0 * _bounds(triples, 0.0)[-1]


@functools.cache
def runs(triples: tuple[Triple, ...], error: float) -> tuple[int, ...]:
    """How many steps the Gram form takes before each return to X: two, of an odd number the last run three if it can.

    Rounding leaves R with eigenvalues of about −½ error ‖R‖, which each step multiplies by a², 12 and more, and Q by
    the more the further they are from 0. Three steps are tolerated if Q's factor at most doubles by it: at five steps
    in float16, and for "keller" and "quintic" in bfloat16. Over a dozen spectra such a run made singular values of
    nought up to 1.7, beside the largest of 1.2, and errors three times the plain form's; where it is refused, with
    "polar_express" in bfloat16, 5.5. No step may follow, which could throw these out of range; and the first run, which
    small singular values enter as they were given, is kept at two.
    """
    pairs, odd = divmod(len(triples), 2)
    if not odd:
        return (2,) * pairs
    noise = -0.5 * error * _bounds(triples, error)[max(0, len(triples) - 3)] ** 2
    r, factor, exact = noise, 1.0, 1.0
    for a, b, c in triples[-3:]:
        step = a + b * r + c * r * r
        r, factor, exact = r * step * step + noise, factor * step, exact * a
    if pairs >= 2 and abs(factor) <= 2.0 * abs(exact):
        return (*(2,) * (pairs - 1), 3)
    return (*(2,) * pairs, 1)


def _bounds(triples: Triples, error: float) -> list[float]:
    """The largest singular value before each step and after the last, from [0, 1], with a relative error a step."""
    bounds = [1.0]
    for a, b, c in triples:
        x = bounds[-1] * np.linspace(0.0, 1.0, 1001)
        bounds.append(min((1.0 + error) * float(np.abs(a * x + b * x**3 + c * x**5).max()), 1e30))
    return bounds


def oriented(x: torch.Tensor) -> torch.Tensor:
    """Matrices [..., m, n] or their transposed view: m ≤ n, square ones as products read them faster."""
    rows, cols = x.shape[-2:]
    if rows == cols:
        return faster_side(x)
    return x.mT if rows > cols else x


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
        x: float16, bfloat16 or float32 [..., m, n]; left as it is. A tall matrix, and a square one in 16 bits, is
            iterated through its transposed view.
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

    Source: Jordan et al. 2024 (Muon), after Kovarik 1970 and Björck & Bowie 1971; "quintic", "polar_express" and "cans"
    as in `rlx_gpu.reference.newton_schulz`.
    """
    dtype = _check(x, dtype)
    triples, eps = schedule(coefficients, steps), EPS.check(eps)
    if x.numel() == 0:
        return x.clone()
    matrices = normalized(x.detach().reshape(-1, *x.shape[-2:]), eps, dtype)
    start = oriented(matrices)
    result = orthogonalize_(start, triples)
    return (result if start is matrices else result.mT).to(x.dtype).reshape(x.shape)


def normalized(x: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """x/(‖x‖ + eps), eps > 0, of each matrix of [B, m, n], in new memory: two norms, two quotients."""
    size = partial(torch.linalg.vector_norm, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    peak = size(x, math.inf)
    peak = torch.where(peak == 0.0, 1.0, peak)
    scaled = x / peak  # float32, as the peak
    result = scaled if dtype == torch.float32 else torch.empty_like(scaled, dtype=dtype)
    return torch.div(scaled, size(scaled) + eps / peak, out=result)


def orthogonalize_(x: torch.Tensor, triples: Triples) -> torch.Tensor:
    """Iterates matrices [B, m, n], m ≤ n, whose singular values are at most 1, in their own dtype.

    Each of B matrices takes one more m × n and two m × m while its chunk of at most MOST_ELEMENTS is iterated. The
    contents of x, possibly a transposed view, are lost; the result is in x, in a buffer of its layout, or on the CPU
    in a contiguous one.
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
    if on_host(x.device):
        x = x.contiguous()  # torch's products into anything else are slow
    spare = torch.empty_like(x)
    gram, polynomial = x.new_empty((2, len(x), x.shape[1], x.shape[1]))
    for a, b, c in triples:
        product(x, out=gram)
        product(gram, out=polynomial, alpha=c, beta=b, c=gram)
        add_product(x, polynomial, x, beta=a, out=spare)
        x, spare = spare, x
    return x


def _general_product(
    x: torch.Tensor, *, out: torch.Tensor, alpha: float = 1.0, beta: float = 0.0, c: torch.Tensor | None = None
) -> torch.Tensor:
    """`symmetric_product` by a general one."""
    return add_product(out if c is None else c, x, x.mT, beta=beta, alpha=alpha, out=out)


def _gram(x: torch.Tensor, triples: Triples) -> torch.Tensor:
    """The iteration on R = XXᵀ, n ≥ 2m, which returns to X after each of `runs` only.

        R = XXᵀ, Q = I;  each step: Z = bR + cR², Q ← QZ + aQ, P = RZ + aR, R ← ZP + aP;  at the end: X ← QX

    All but X are polynomials in one symmetric matrix, and so is every product of two of them. In runs of two the error
    in 16 bits is up to four times the plain form's.
    """
    x = x if is_dense(x) else x.contiguous()
    batch, m, _ = x.shape
    spare = torch.empty_like(x)
    r, q = x.new_empty((2, batch, m, m))
    remaining = iter(triples)
    for length in runs(tuple(triples), torch.finfo(x.dtype).eps / 2.0):
        # Until X ← QX, the buffer it goes to is idle: room for two squares.
        z, t = spare.as_strided((2, batch, m, m), (batch * m * m, m * m, m, 1))
        symmetric_product(x, out=r)
        torch.bmm(_run([*islice(remaining, length)], r, q, z, t), x, out=spare)
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
            symmetric_product(q, z, out=target, beta=a, c=q)
            q, t = target, q
        if not last:
            symmetric_product(r, z, out=t, beta=a, c=r)
            symmetric_product(t, z, out=r, beta=a, c=t)
    return q


FORMS: dict[str, Callable[[torch.Tensor, Triples], torch.Tensor]] = {
    "plain": partial(_iterate, product=_general_product),
    "symmetric": partial(_iterate, product=symmetric_product),
    "gram": _gram,
}


def _check(x: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The format of the iteration; refuses what cannot be iterated."""
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided:
        got = x.layout if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"newton_schulz: x must be a dense torch.Tensor, got {got}")
    refuse_wrapper("newton_schulz: x", x)
    for label, given in (("x has dtype", x.dtype), ("dtype is", dtype)):
        if given is not None and given not in LEAST_ROWS:
            raise TypeError(f"newton_schulz: {label} {given}, must be one of {', '.join(map(str, LEAST_ROWS))}")
    if x.ndim < 2:
        raise ValueError(f"newton_schulz: x has shape {tuple(x.shape)}, must have at least two dimensions")
    return dtype or x.dtype
