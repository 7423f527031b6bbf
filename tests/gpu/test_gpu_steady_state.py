"""A steady step is launches alone: it waits for nothing, uploads nothing, allocates nothing, and counts exactly."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from gpu_models import NUMEL, make, make_params
from variants import MATRIX, SCHEDULED, VARIANTS

import rlx_gpu

FUSED = [variant for variant, (name, _) in VARIANTS.items() if name not in MATRIX]
SMALL = 64 * 1024  # bytes; a large parameter takes 4 MiB


def guarded(variant):
    """Whether steps may be skipped without waiting: not where the launches depend on the step count."""
    return VARIANTS[variant][0] not in SCHEDULED


def size(device):
    """Elements of a large parameter."""
    return NUMEL if device == "cuda" else 1024


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_learning_rate_on_the_device_is_not_read_by_the_host(variant, device, no_sync):
    """It gives the bits of the same number on the host, and is live: what is written to it, the next step uses."""
    own = make_params(device, size(device))
    twins = [torch.nn.Parameter(param.detach().clone()) for param in own]
    for param, twin in zip(own, twins, strict=True):
        twin.grad = param.grad.clone()
    lr = torch.tensor(0.05, device=device)
    rates = [lr.item() / 2**step for step in range(6)]
    optimizer = make(variant, own, lr=lr, skip_nonfinite=guarded(variant))
    plain = make(variant, twins, lr=rates[0], skip_nonfinite=guarded(variant))
    for step in range(6):
        with no_sync() if step > 1 else nullcontext():
            optimizer.step()
            lr.mul_(0.5)
    for rate in rates:
        plain.param_groups[0]["lr"] = rate
        plain.step()
    assert all(map(torch.equal, own, twins))


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_are_counted_where_they_are_taken(variant, device, no_sync):
    """Steps are skipped and gradients are missing; nothing is read or settled before the end."""
    params = make_params(device, size(device))
    first, last = params[0], params[-1]
    optimizer = make(variant, params, skip_nonfinite=True)
    optimizer.step()
    good, bad = first.grad, torch.full_like(first, float("nan"))
    kept = last.grad
    steps = 70 if device == "cuda" else 8
    with no_sync() if guarded(variant) else nullcontext():
        for step in range(steps):
            first.grad = bad if step % 3 == 1 else good
            last.grad = None if step % 4 == 2 else kept
            optimizer.step()
    taken = [step for step in range(steps) if step % 3 != 1]
    assert optimizer.state[first]["step"].item() == 1 + len(taken)
    assert optimizer.state[last]["step"].item() == 1 + sum(step % 4 != 2 for step in taken)
    assert all(param.isfinite().all() for param in params)


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_set_of_gradients_costs_no_plan_and_no_wait(variant, device, no_sync):
    """Nor memory of a parameter's size, but for what whole matrices take while they are stepped."""
    params = make_params(device, size(device))
    grads = [param.grad for param in params]
    optimizer = make(variant, params)
    for _ in range(2):
        optimizer.step()
    plans = list(optimizer._engine.steps)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with no_sync():
        for chosen in range(1, 2 ** len(params)):
            for place, param in enumerate(params):
                param.grad = grads[place] if chosen >> place & 1 else None
            optimizer.step()
    assert list(optimizer._engine.steps) == plans
    if device == "cuda" and variant in FUSED:
        torch.cuda.synchronize()
        assert torch.cuda.max_memory_allocated() - before < SMALL


@pytest.mark.gpu
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("variant", FUSED)
def test_a_steady_step_copies_nothing_from_the_host(variant, skip):
    """Neither tables nor hyperparameters: the profiler sees kernels, and no copy from the host's memory."""
    from torch.profiler import ProfilerActivity, profile

    params = make_params("cuda")
    optimizer = make(variant, params, lr=torch.tensor(0.05, device="cuda"), skip_nonfinite=skip)
    scale = rlx_gpu.global_grad_clip_scale([param.grad for param in params], 1.0)
    for _ in range(3):
        optimizer.step(grad_scale=scale)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(4):
            optimizer.step(grad_scale=scale)
        torch.cuda.synchronize()
    names = {event.name for event in trace.events() or () if event.device_type.name == "CUDA"}
    assert {"rows_kernel", "fused_step_kernel"} <= names
    assert not [name for name in names if name.startswith("Memcpy HtoD")]
