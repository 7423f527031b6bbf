"""Estimators of the Hessian's diagonal, for Sophia's `optimizer.update_hessian(params, estimates)`."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def hutchinson(
    loss: torch.Tensor, params: Iterable[torch.Tensor], generator: torch.Generator | None = None
) -> list[torch.Tensor]:
    """Hutchinson's estimate z ⊙ Hz, with z of random signs; unbiased, and may be negative.

    Args:
        loss: a scalar with its graph; it is differentiated twice, so every operation behind it must allow that
            (attention kernels that do not: torch.nn.attention.sdpa_kernel(SDPBackend.MATH)).
        params: the parameters to estimate for.
        generator: source of the signs, on the parameters' device.

    Returns:
        One tensor per parameter, of its shape and dtype; zeros where the loss does not depend on it.

    Source: Liu et al. 2023 (arXiv 2305.14342), algorithm 1.
    """
    params = list(params)
    with torch.enable_grad():
        grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        signs = [_signs(param, generator) for param in params]
        used = [
            (grad, sign) for grad, sign in zip(grads, signs, strict=True) if grad is not None and grad.requires_grad
        ]
        if not used:
            return [torch.zeros_like(param) for param in params]
        outputs, vectors = zip(*used, strict=True)
        curvature = torch.autograd.grad(outputs, params, vectors, allow_unused=True)
    return [
        torch.zeros_like(param) if column is None else (sign * column).detach()
        for param, sign, column in zip(params, signs, curvature, strict=True)
    ]


def gauss_newton_bartlett(
    logits: torch.Tensor, params: Iterable[torch.Tensor], generator: torch.Generator | None = None
) -> list[torch.Tensor]:
    """The Gauss–Newton–Bartlett estimate B·g²: g is the gradient of the mean loss over B labels sampled from the model.

    Args:
        logits: [..., classes] with their graph; every position is one of the B labels.
        params: the parameters to estimate for.
        generator: source of the labels, on the logits' device.

    Returns:
        One tensor per parameter, of its shape and dtype, never negative; zeros where the logits do not depend on it.

    Source: Liu et al. 2023 (arXiv 2305.14342), algorithm 2.
    """
    params = list(params)
    with torch.enable_grad():
        flat = logits.reshape(-1, logits.shape[-1])
        labels = torch.multinomial(flat.detach().float().softmax(dim=-1), 1, generator=generator).squeeze(1)
        loss = torch.nn.functional.cross_entropy(flat, labels)
        grads = torch.autograd.grad(loss, params, allow_unused=True)
    return [
        torch.zeros_like(param) if grad is None else len(labels) * grad.detach().square()
        for param, grad in zip(params, grads, strict=True)
    ]


def _signs(param: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """±1 with even odds, shaped like the parameter."""
    bits = torch.randint(0, 2, param.shape, generator=generator, device=param.device)
    return (2 * bits - 1).to(param.dtype)
