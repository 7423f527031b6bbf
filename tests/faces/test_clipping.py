"""`max_grad_norm`: gradients are brought down to a norm inside the step, and the norm stays on the device."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from no_reads import NoReads
from snapshots import assert_same, make_params, set_grads, snapshot
from variants import SCHEDULED, VARIANTS

import rlx_gpu
from rlx_gpu import optim, reference

MAX_NORMS = [0.0, 0.5, 1e3, float("inf")]  # nothing left, clipped, and twice not


def make(variant, params, **more):
    name, hyper = VARIANTS[variant]
    return getattr(optim, name)(params, **{**hyper, **more})


def norm_of(params):
    return torch.cat([param.grad.double().reshape(-1) for param in params]).norm()


@pytest.mark.parametrize("max_norm", MAX_NORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_is_a_step_of_clipped_gradients(variant, max_norm, path):
    """Those of torch.nn.utils.clip_grad_norm_, after which the norm is known as well."""
    own, other = make_params(), make_params()
    ours, plain = make(variant, own, max_grad_norm=max_norm), make(variant, other)
    for seed in range(3):
        for params in (own, other):
            set_grads(params, seed)
        before = [param.grad.clone() for param in own]
        torch.nn.utils.clip_grad_norm_(other, max_norm)
        ours.step()
        plain.step()
        assert all(torch.equal(param.grad, grad) for param, grad in zip(own, before, strict=True))
        assert ours.grad_norm.shape == () and ours.grad_norm.dtype == torch.float32
        torch.testing.assert_close(ours.grad_norm.double(), norm_of(own), rtol=1e-6, atol=0)
    for param, twin in zip(own, other, strict=True):
        torch.testing.assert_close(param, twin, rtol=2e-4, atol=2e-4)  # SOAP and Lion turn on little


@pytest.mark.parametrize("variant", [variant for variant, (name, _) in VARIANTS.items() if name not in SCHEDULED])
def test_equals_the_reference(variant):
    """The trait's, beside the reference with the same option."""
    name, hyper = VARIANTS[variant]
    ours, theirs = (getattr(face, name)(**hyper, max_grad_norm=0.7) for face in (rlx_gpu, reference))
    params = {str(i): param.detach() for i, param in enumerate(make_params())}
    arrays = {key: param.double().numpy() for key, param in params.items()}
    for seed in range(3):
        model = make_params()
        set_grads(model, seed)
        grads = {str(i): param.grad for i, param in enumerate(model)}
        ours.step_batch([(key, tuple(param.shape), param, grads[key]) for key, param in params.items()])
        theirs.step_batch([(key, array.shape, array, grads[key].double().numpy()) for key, array in arrays.items()])
        ours.end_iteration()
        theirs.end_iteration()
        wanted = np.sqrt(sum((grad.double() ** 2).sum().item() for grad in grads.values()))
        np.testing.assert_allclose(ours.grad_norm, wanted, rtol=1e-6)
    for key, param in params.items():
        np.testing.assert_allclose(param, arrays[key], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_formats_have_one_norm(dtype, path):
    """Of all parameters together, whatever their formats; those that only a CPU steps lie in another plan's numbers."""
    if dtype == torch.float64 and path == "kernels":
        dtype = torch.bfloat16
    params = [*make_params(), *make_params(dtype, seed=1)]
    optimizer = optim.SGD(params, lr=1.0, max_grad_norm=1.0)
    before = [param.detach().clone() for param in params]
    set_grads(params, 0)
    optimizer.step()
    torch.testing.assert_close(optimizer.grad_norm.double(), norm_of(params), rtol=1e-6, atol=0)
    taken = [(old - new.detach()).double().reshape(-1) for old, new in zip(before, params, strict=True)]
    torch.testing.assert_close(torch.cat(taken).norm().item(), 1.0, rtol=2e-2, atol=0)


def test_the_factor_comes_before(path):
    """`grad_scale`, and a scaler's scale: what is clipped is what the gradients stand for."""
    params = make_params()
    optimizer = optim.SGD(params, lr=1.0, max_grad_norm=1.0, fused=True)
    for scale, divisor in ((3.0, None), (torch.tensor(0.25), torch.tensor(8.0)), (1.0, torch.tensor(1e6))):
        set_grads(params, 0)
        before = [param.detach().clone() for param in params]
        if divisor is not None:
            optimizer.grad_scale = divisor
        optimizer.step(grad_scale=scale)
        scaled = norm_of(params) * float(scale) / float(1.0 if divisor is None else divisor)
        torch.testing.assert_close(optimizer.grad_norm.double(), scaled, rtol=1e-6, atol=0)
        taken = torch.cat([(old - new.detach()).reshape(-1) for old, new in zip(before, params, strict=True)]).norm()
        torch.testing.assert_close(taken.double(), scaled.clamp(max=1.0), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("skip", [False, True])
def test_a_nan_shows_in_the_norm(skip, path):
    """And the step goes on with the finite entries' norm, as with `global_grad_clip_scale`, unless it is skipped."""
    own, other = make_params(), make_params()
    ours = optim.SGD(own, lr=0.1, max_grad_norm=0.5, skip_nonfinite=skip)
    plain = optim.SGD(other, lr=0.1)
    for params in (own, other):
        set_grads(params, 0)
        params[0].grad.view(-1)[3] = float("nan")
    before = snapshot(ours, own)
    ours.step()
    assert ours.grad_norm.isnan()
    if skip:
        assert_same(params_in(snapshot(ours, own)), params_in(before))
        return
    plain.step(grad_scale=rlx_gpu.global_grad_clip_scale([param.grad for param in other], 0.5))
    for param, twin in zip(own, other, strict=True):
        torch.testing.assert_close(param, twin, rtol=1e-6, atol=1e-7, equal_nan=True)


def params_in(taken):
    """The parameters of a snapshot."""
    return {key: value for key, value in taken.items() if key[0] == "param"}


@pytest.mark.parametrize("name", ["AdamW", "LAMB", "Adafactor", "Muon", "SOAP", "KronPSGD"])
def test_the_host_reads_nothing(name):
    params = make_params()
    optimizer = getattr(optim, name)(params, lr=0.1, max_grad_norm=1.0)
    for seed in range(2):
        set_grads(params, seed)
        with NoReads() if seed else torch.no_grad():
            optimizer.step()


def test_it_may_change_between_steps(path):
    """From none to one, to another, and back; the norm that was measured last stays."""
    params = make_params()
    optimizer = optim.SGD(params, lr=1.0)
    for max_norm in (None, 0.5, 0.25, None):
        set_grads(params, 0)
        before = [param.detach().clone() for param in params]
        optimizer.max_grad_norm = max_norm
        optimizer.step()
        taken = torch.cat([(old - new.detach()).reshape(-1) for old, new in zip(before, params, strict=True)]).norm()
        torch.testing.assert_close(
            taken.double(), norm_of(params).clamp(max=max_norm or float("inf")), rtol=1e-4, atol=0
        )
    torch.testing.assert_close(optimizer.grad_norm.double(), norm_of(params), rtol=1e-6, atol=0)


def test_absent_gradients_have_no_part(path):
    params = make_params()
    optimizer = optim.AdamW(params, lr=0.1, max_grad_norm=1.0)
    assert optimizer.grad_norm is None
    for absent in (2, 0, None):
        set_grads(params, 0)
        present = [param for i, param in enumerate(params) if i != absent]
        if absent is not None:
            params[absent].grad = None
        optimizer.step()
        torch.testing.assert_close(optimizer.grad_norm.double(), norm_of(present), rtol=1e-6, atol=0)


def test_estimates_of_another_format_change_no_norm(path):
    params = make_params(torch.bfloat16)
    optimizer = optim.Sophia(params, lr=0.1)
    set_grads(params, 0)
    optimizer.step()
    optimizer.update_hessian(params, [torch.ones(param.shape) for param in params])
    optimizer.max_grad_norm = 1.0
    optimizer.step()
    torch.testing.assert_close(optimizer.grad_norm.double(), norm_of(params), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_skips_as_gradients_do(scale, path):
    params = make_params()
    optimizer = optim.AdamW(params, lr=0.1, skip_nonfinite=True)
    set_grads(params, 0)
    optimizer.step()
    before = snapshot(optimizer, params)
    optimizer.step(grad_scale=scale)
    assert_same(snapshot(optimizer, params), before)


def test_options_may_be_set_in_the_trait_too(path):
    optimizer, param = rlx_gpu.SGD(lr=1.0), torch.ones(4)
    optimizer.max_grad_norm = 0.5
    optimizer.step("w", (4,), param, torch.ones(4))
    optimizer.end_iteration()
    torch.testing.assert_close(param, torch.full((4,), 0.75))
    torch.testing.assert_close(optimizer.grad_norm, torch.tensor(2.0))
    optimizer.skip_nonfinite = True
    optimizer.step("w", (4,), param, torch.full((4,), float("nan")))
    torch.testing.assert_close(param, torch.full((4,), 0.75))
    with pytest.raises(ValueError, match="max_grad_norm"):
        optimizer.max_grad_norm = -1.0


def test_a_norm_beyond_float32_has_a_guarded_step_skipped():
    """Its factor would be nought; on the CPU's own driver, in float64, there is one."""
    params = [torch.nn.Parameter(torch.ones(4))]
    optimizer = optim.SGD(params, lr=1.0, max_grad_norm=1.0, skip_nonfinite=True)
    params[0].grad = torch.full((4,), 1e30)
    optimizer.step()
    assert torch.equal(params[0].detach(), torch.ones(4)) and optimizer.grad_norm.isinf()


def test_there_is_no_norm_that_nobody_asked_for():
    params = make_params()
    optimizer = optim.AdamW(params, lr=0.1, fused=True)
    set_grads(params, 0)
    optimizer.grad_scale = torch.tensor(2.0)
    optimizer.step()
    assert optimizer.grad_norm is None


def test_copies_take_it_along():
    optimizer = copy.deepcopy(optim.AdamW(make_params(), lr=0.1, max_grad_norm=0.5))
    assert optimizer.max_grad_norm == 0.5 and optimizer.grad_norm is None
    assert copy.deepcopy(rlx_gpu.AdamW(lr=0.1, max_grad_norm=0.5))._engine.max_grad_norm == 0.5


@pytest.mark.parametrize("face", [lambda **o: optim.AdamW(make_params(), **o), rlx_gpu.AdamW, reference.AdamW])
@pytest.mark.parametrize("value", [-1.0, float("nan"), "1", True])
def test_what_is_no_norm_is_refused(face, value):
    with pytest.raises((TypeError, ValueError), match="max_grad_norm"):
        face(lr=0.1, max_grad_norm=value)


def test_it_is_of_the_whole_optimizer():
    with pytest.raises(TypeError, match="'max_grad_norm' in a group: is an option of the whole optimizer"):
        optim.AdamW([{"params": make_params(), "max_grad_norm": 1.0}], lr=0.1)
    with pytest.raises(ValueError, match="max_grad_norm"):
        optim.AdamW(make_params(), lr=0.1).max_grad_norm = -1.0
