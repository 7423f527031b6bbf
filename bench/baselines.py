"""What ours is measured against where no package has it: Newton–Schulz and Muon in batched library products alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..reference.newton_schulz import schedule
from .providers import HYPER
from .timing import Step

MOMENTUM, EPS, STEPS = 0.95, 1e-7, 5
TRIPLES = schedule("keller", STEPS)


def batched_newton_schulz(x: Any) -> Any:
    """The iteration as it stands on every matrix of [B, m, n], in bfloat16, each product one batched call."""
    import torch

    tall = x.shape[-2] > x.shape[-1]
    y = (x.mT if tall else x).bfloat16()
    y = y / (torch.linalg.matrix_norm(y, keepdim=True) + EPS)
    for a, b, c in TRIPLES:
        gram = torch.bmm(y, y.mT)
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y.mT if tall else y


def exact_newton_schulz(x: Any) -> Any:
    """The same of one matrix in float64, to check with."""
    y = x.double()
    y = y / (y.norm() + EPS)
    if tall := y.shape[0] > y.shape[1]:
        y = y.mT
    for a, b, c in TRIPLES:
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y.mT if tall else y


def batched_muon(params: Sequence[Any]) -> Step:
    """Muon with torch's foreach operations for what is elementwise and a batch for each shape."""
    import torch

    own = list(params)
    momenta = [torch.zeros_like(param) for param in params]
    shapes: dict[tuple[int, ...], list[int]] = {}
    for index, param in enumerate(params):
        shapes.setdefault(tuple(param.shape), []).append(index)
    lr, decay = float(HYPER["lr"]), float(HYPER["weight_decay"])

    @torch.no_grad()
    def step() -> None:
        grads = [param.grad for param in params]
        torch._foreach_lerp_(momenta, grads, 1.0 - MOMENTUM)
        updates: list[Any] = list(torch._foreach_lerp(grads, momenta, MOMENTUM))
        for (rows, cols), members in shapes.items():
            scale = max(1.0, rows / cols) ** 0.5
            batch = batched_newton_schulz(torch.stack([updates[i] for i in members])).mul_(scale)
            for i, update in zip(members, batch.unbind(), strict=True):
                updates[i] = update.to(params[i].dtype)
        torch._foreach_mul_(own, 1.0 - lr * decay)
        torch._foreach_add_(own, updates, alpha=-lr)

    return step


def plain_operations(shapes: Sequence[tuple[int, ...]]) -> float:
    """Operations of the plain iteration on these matrices: T(4m²n + 2m³) each, m the shorter side."""
    sides = [sorted(shape[-2:]) for shape in shapes]
    return float(sum(STEPS * (4 * m * m * n + 2 * m**3) for m, n in sides))


def syrk(x: Any) -> Step | None:
    """cuBLAS's float32 product of a matrix with its own transpose, one triangle of it, through CuPy where installed."""
    try:
        import cupy
        from cupy.cublas import syrk as run
    except ImportError:
        return None
    import torch

    a = cupy.from_dlpack(x.detach())
    out = cupy.empty((len(x), len(x)), dtype=cupy.float32, order="F")
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)

    def step() -> None:
        with stream:
            run("N", a, out=out)

    return step
