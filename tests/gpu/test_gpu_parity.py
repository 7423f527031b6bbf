"""Every optimizer in every storage against the reference, on tensors of awkward shapes and places."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from gpu_models import STEPS, assert_close, make_grads, make_tensors, run, run_reference
from variants import BASE, OPTIMIZERS, VARIANTS

import rlx_gpu
from rlx_gpu import TABLE, optim, trait
from rlx_gpu.parity.cases import DEFAULT_SHAPES, parse_shapes
from rlx_gpu.parity.storages import find_storages
from rlx_gpu.parity.trial import run_trial
from rlx_gpu.parity.variants import Variant, variants

CASES = parse_shapes(DEFAULT_SHAPES)
EVERY_STORAGE = pytest.mark.parametrize("formats", find_storages(), ids=str)


@pytest.mark.gpu
@EVERY_STORAGE
@pytest.mark.parametrize("variant", [one for algorithm in TABLE.values() for one in variants(algorithm)], ids=str)
def test_kernels_agree_with_the_reference(variant, formats):
    """Parameters and every slot, as `rlx-gpu parity` compares them."""
    outcome = run_trial(variant, formats, CASES, STEPS, torch.device("cuda"))
    assert not outcome.failures, "\n".join(outcome.failures)


@pytest.mark.parametrize("name", ["AdamW", "LAMB", "Adafactor"])
def test_a_wrong_reference_does_not_pass(name, device, monkeypatch):
    """The negative control, of each driver: a reference that decays by half is, for parity, a kernel that does."""
    variant, (float32,) = Variant(TABLE[name], {}), find_storages(["float32"])
    cases = parse_shapes("127,16x9:transposed,300:unaligned")
    assert not run_trial(variant, float32, cases, STEPS, torch.device(device)).failures
    right = variant.algorithm.reference.update
    monkeypatch.setattr(
        variant.algorithm.reference,
        "update",
        lambda *given, weight_decay, **hyper: right(*given, weight_decay=weight_decay / 2, **hyper),
    )
    assert run_trial(variant, float32, cases, STEPS, torch.device(device)).failures


def assert_one_face(variant, formats, device, monkeypatch):
    """Param groups of the torch face give the bits that the trait gives, once it draws the same random ones."""
    name, hyper = VARIANTS[variant]
    options = {"state_dtype": formats.state, "rounding": formats.rounding, "seed": 2**33 + 1}
    tensors, twins = (make_tensors(getattr(torch, formats.param), device) for _ in range(2))
    groups = [-(-tensor.numel() // 8) * 8 for tensor in tensors.values()]  # the bits of 8 elements are drawn at once
    origins = dict(zip(tensors, itertools.accumulate(groups, initial=0), strict=False))
    monkeypatch.setattr(trait, "origin", origins.__getitem__)
    run(getattr(rlx_gpu, name)(**hyper, **options), twins)
    params = {key: torch.nn.Parameter(tensor) for key, tensor in tensors.items()}
    optimizer = getattr(optim, name)(params.values(), **hyper, **options)
    for seed in range(STEPS):
        for key, grad in make_grads(tensors, seed).items():
            params[key].grad = grad
        optimizer.step()
    different = [key for key, twin in twins.items() if not torch.equal(params[key], twin)]
    assert not different


@pytest.mark.gpu
@EVERY_STORAGE
@pytest.mark.parametrize("variant", VARIANTS)
def test_torch_face(variant, formats, monkeypatch):
    assert_one_face(variant, formats, "cuda", monkeypatch)


@EVERY_STORAGE
def test_torch_face_of_one_optimizer(formats, device, monkeypatch):
    """It also runs interpreted, so that this file is known to work before it meets a GPU."""
    assert_one_face("AdamW", formats, device, monkeypatch)


@pytest.mark.gpu
def test_a_tensor_beyond_two_to_the_31_elements():
    """Offsets are 64 bits wide: the last element of a large tensor is updated like the first. Needs 13.2 GB."""
    numel, streams, margin = 2**31 + 1030, 3, 2**28  # parameter, gradient, momentum; block tables and the allocator's
    needed = streams * numel * torch.bfloat16.itemsize + margin
    torch.cuda.empty_cache()  # so that what torch keeps for later counts as free
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"needs {needed / 1e9:.1f} GB of free GPU memory, {free / 1e9:.1f} GB are")
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
    expected = run_reference(VARIANTS[name])
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
