"""Every optimizer in every storage against the reference, on tensors of awkward shapes and places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpu_models import STEPS, STORAGES, assert_close, make_grads, make_tensors, run, run_reference
from variants import BASE, OPTIMIZERS, VARIANTS

import rlx_gpu
from rlx_gpu import optim


def make(variant, storage, **more):
    name, hyper = VARIANTS[variant]
    return getattr(rlx_gpu, name)(**{**hyper, **STORAGES[storage][1], **more})


@pytest.mark.gpu
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_trait(variant, storage):
    dtype, _, tolerance = STORAGES[storage]
    tensors = make_tensors(dtype, "cuda")
    run(make(variant, storage), tensors)
    assert_close(tensors, run_reference(VARIANTS[variant], storage), STEPS * tolerance)


@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
def test_trait_in_float32(name, device):
    """One of each driver also runs interpreted, so that this file is known to work before it meets a GPU."""
    tensors = make_tensors(torch.float32, device)
    run(make(name, "float32"), tensors)
    assert_close(tensors, run_reference(VARIANTS[name], "float32"), 2e-5)


def test_another_optimizer_does_not_pass(device):
    """The negative control."""
    tensors = make_tensors(torch.float32, device)
    run(make("Adam", "float32"), tensors)
    with pytest.raises(AssertionError):
        assert_close(tensors, run_reference(VARIANTS["AdamW"], "float32"), 2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_torch_face(variant, storage):
    """The same numbers as the trait gives, from param groups."""
    dtype, options, tolerance = STORAGES[storage]
    tensors = make_tensors(dtype, "cuda")
    params = {key: torch.nn.Parameter(tensor) for key, tensor in tensors.items()}
    name, hyper = VARIANTS[variant]
    optimizer = getattr(optim, name)(params.items(), **hyper, **options)
    for seed in range(STEPS):
        for key, grad in make_grads(tensors, seed).items():
            params[key].grad = grad
        optimizer.step()
    assert_close(params, run_reference(VARIANTS[variant], storage), STEPS * tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_stochastic_rounding_draws_the_references_bits(variant):
    """The random bits are the reference's own: most elements are equal to the bit, none is two steps away."""
    tensors, twins = make_tensors(torch.bfloat16, "cuda"), make_tensors(torch.bfloat16, "cpu")
    options = STORAGES["bfloat16-stochastic"][1]
    name, hyper = VARIANTS[variant]
    for params, device in ((tensors, "cuda"), (twins, "cpu")):
        run(getattr(rlx_gpu, name)(**hyper, **options, device=device), params, range(1))
    for key, twin in twins.items():
        got, want = tensors[key].float().cpu(), twin.float()
        assert ((got - want).abs() <= 2**-7 * want.abs() + 1e-30).all(), key
        assert (got == want).float().mean() > 0.99 or want.numel() < 100, key


@pytest.mark.gpu
def test_a_tensor_beyond_two_to_the_31_elements():
    """Offsets are 64 bits wide: the last element of a large tensor is updated like the first. Needs 26 GB."""
    numel = 2**31 + 1030
    if torch.cuda.get_device_properties(0).total_memory < 40e9:
        numel = 2**20 + 1030
    param = torch.ones(numel, dtype=torch.bfloat16, device="cuda")
    optimizer = rlx_gpu.Lion(lr=0.25, weight_decay=0.0, state_dtype="bfloat16")
    optimizer.step("large", (numel,), param, torch.ones_like(param))
    for part in (param[:2048], param[numel // 2 :][:2048], param[-2048:]):
        assert (part == 0.75).all()


@pytest.mark.parametrize("estimator", ["hutchinson", "gauss_newton_bartlett"])
def test_sophia_with_estimates(estimator, device):
    weight = torch.nn.Parameter(torch.randn(8, 5, device=device))
    inputs = torch.randn(16, 8, device=device)
    optimizer = optim.Sophia([weight], **BASE)
    generator = torch.Generator(device).manual_seed(0)
    logits = inputs @ weight
    if estimator == "hutchinson":
        estimates = rlx_gpu.hessian.hutchinson(logits.square().mean(), [weight], generator)
    else:
        estimates = rlx_gpu.hessian.gauss_newton_bartlett(logits, [weight], generator)
    optimizer.update_hessian([weight], estimates)
    torch.testing.assert_close(optimizer.state[weight]["hessian"], 0.01 * estimates[0])
    weight.grad = torch.ones_like(weight)
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norms(dtype, device):
    tensors = [tensor for tensor in make_tensors(dtype, device).values()]
    expected = np.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))
    scale = rlx_gpu.global_grad_clip_scale(tensors, 1.0)
    assert scale.device.type == device
    assert scale.item() == pytest.approx(1.0 / expected, rel=2e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_on_two_kinds_of_device(name):
    """One optimizer, some parameters on the GPU and some on the host; all count the same steps."""
    tensors = make_tensors(torch.float32, "cuda")
    expected = run_reference(VARIANTS[name], "float32")
    mixed = {key: tensor.cpu() if key in ("127", "tall") else tensor for key, tensor in tensors.items()}
    params = {key: torch.nn.Parameter(tensor) for key, tensor in mixed.items()}
    optimizer = getattr(optim, name)(params.items(), **VARIANTS[name][1], skip_nonfinite=True)
    for seed in range(STEPS):
        grads = make_grads(mixed, seed)
        for bad in (True, False):
            for key, param in params.items():
                param.grad = grads[key].clone()
            if bad:
                params[("127", "1025", "tall")[seed]].grad.view(-1)[-1] = float("nan")
            optimizer.step()
    assert_close(params, expected, 2e-5)
    assert {state["step"].item() for state in optimizer.state.values()} == {STEPS}
