"""Arrays of other libraries, the host's arrays, and checkpoints that change device."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gpu_models import STEPS, assert_close, make_grads, make_tensors, run, run_reference
from variants import BASE, VARIANTS

import rlx_gpu
from rlx_gpu import optim


def make(variant, **more):
    name, hyper = VARIANTS[variant]
    return getattr(rlx_gpu, name)(**{**hyper, **more})


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_cupy_arrays_are_stepped_without_a_copy(variant, cupy):
    rng = np.random.default_rng(0)
    start = {"vector": rng.normal(size=1025).astype(np.float32), "matrix": rng.normal(size=(40, 48)).astype(np.float32)}
    params = {key: cupy.asarray(value) for key, value in start.items()}
    places = {key: param.data.ptr for key, param in params.items()}
    ours, oracle = make(variant), getattr(rlx_gpu.reference, VARIANTS[variant][0])(**VARIANTS[variant][1])
    expected = {key: value.astype(np.float64) for key, value in start.items()}
    for _ in range(STEPS):
        grads = {key: rng.normal(size=value.shape).astype(np.float32) for key, value in start.items()}
        ours.step_batch([(key, param.shape, param, cupy.asarray(grads[key])) for key, param in params.items()])
        oracle.step_batch([(key, value.shape, value, grads[key].astype(np.float64)) for key, value in expected.items()])
        ours.end_iteration(), oracle.end_iteration()
    for key, param in params.items():
        assert param.data.ptr == places[key]
        np.testing.assert_allclose(cupy.asnumpy(param), expected[key], rtol=0, atol=2e-5 * np.abs(expected[key]).max())
    assert all(v.device.type == "cuda" for k, v in ours.state_dict().items() if isinstance(v, torch.Tensor) and v.ndim)


@pytest.mark.gpu
def test_a_cupy_step_allocates_nothing_of_its_size(cupy):
    param, grad = cupy.ones(1 << 22, dtype=cupy.float32), cupy.ones(1 << 22, dtype=cupy.float32)
    optimizer = make("AdamW")
    for _ in range(2):
        optimizer.step("p", param.shape, param, grad)
        optimizer.end_iteration()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step("p", param.shape, param, grad)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 1 << 16


@pytest.mark.gpu
def test_a_cupy_array_on_its_own_stream(cupy):
    """CuPy's current stream is torch's default one unless it is set: the step comes in order."""
    param, grad = cupy.zeros(5000, dtype=cupy.float32), cupy.zeros(5000, dtype=cupy.float32)
    optimizer = rlx_gpu.SGD(lr=1.0)
    for number in range(1, 4):
        grad.fill(number)
        optimizer.step("p", param.shape, param, grad)
        optimizer.end_iteration()
    assert (cupy.asnumpy(param) == -6.0).all()


@pytest.mark.gpu
def test_a_non_contiguous_cupy_array_is_refused(cupy):
    param = cupy.ones((4, 12), dtype=cupy.float32)[:, ::2]
    optimizer = make("AdamW")
    optimizer.step("good", (3,), cupy.ones(3, dtype=cupy.float32), cupy.ones(3, dtype=cupy.float32))
    with pytest.raises(ValueError, match=r"parameter 'p': its memory has gaps"):
        optimizer.step("p", param.shape, param, cupy.ones((4, 6), dtype=cupy.float32))


@pytest.mark.parametrize("variant", ["AdamW", "Adafactor", "LAMB", "NAdamW(momentum_decay=0.9)"])
def test_numpy_arrays_with_the_state_on_the_device(variant, device):
    tensors = make_tensors(torch.float32, "cpu")
    arrays = {key: tensor.contiguous().numpy() for key, tensor in tensors.items()}
    optimizer = make(variant, device=device)
    for seed in range(STEPS):
        grads = make_grads(tensors, seed)
        optimizer.step_batch([(key, a.shape, a, grads[key].numpy()) for key, a in arrays.items()])
        optimizer.end_iteration()
    expected = run_reference(VARIANTS[variant])
    assert_close({key: torch.from_numpy(array) for key, array in arrays.items()}, expected, 2e-5)
    slots = [v for k, v in optimizer.state_dict().items() if isinstance(v, torch.Tensor) and v.ndim]
    assert slots and all(slot.device.type == device for slot in slots)


def test_numpy_parameters_with_gaps_are_copied_back_in_place(device):
    """On a GPU a NumPy array is copied anyhow; on the CPU it is stepped in place and must have no gaps."""
    base = np.ones((4, 12), np.float32)
    optimizer = make("AdamW", device=device)
    optimizer.step("dense", (3,), np.ones(3, np.float32), np.ones(3, np.float32))
    if device == "cpu":
        with pytest.raises(ValueError, match=r"parameter 'p': its memory has gaps"):
            optimizer.step("p", (4, 6), base[:, ::2], np.ones((4, 6), np.float32))
    else:
        optimizer.step("p", (4, 6), base[:, ::2], np.ones((4, 6), np.float32))
        assert (base[:, ::2] < 1).all() and (base[:, 1::2] == 1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("there", ["cuda", "cpu"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_torch_checkpoint_changes_device(variant, there):
    """Three steps on one device, saved, two more on the other: what five on one give."""
    name, hyper = VARIANTS[variant]
    here = "cpu" if there == "cuda" else "cuda"
    expected = run_reference(VARIANTS[variant], range(5))
    params = {key: torch.nn.Parameter(tensor) for key, tensor in make_tensors(torch.float32, here).items()}

    def steps(optimizer, members, seeds):
        for seed in seeds:
            for key, grad in make_grads(members, seed).items():
                members[key].grad = grad.to(members[key].device)
            optimizer.step()

    first = getattr(optim, name)(params.values(), **hyper)
    steps(first, params, range(3))
    moved = {key: torch.nn.Parameter(param.detach().to(there)) for key, param in params.items()}
    second = getattr(optim, name)(moved.values(), **hyper)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(second, moved, range(3, 5))
    assert_close(moved, expected, 2e-5)
    assert {state["step"].item() for state in second.state.values()} == {5}


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trait_state_changes_device(variant):
    expected = run_reference(VARIANTS[variant], range(5))
    tensors = make_tensors(torch.float32, "cuda")
    first = make(variant)
    run(first, tensors, range(3))
    second, moved = make(variant, device="cpu"), {key: tensor.cpu() for key, tensor in tensors.items()}
    second.load_state_dict(first.state_dict())
    run(second, moved, range(3, 5))
    assert_close(moved, expected, 2e-5)


@pytest.mark.gpu
def test_state_left_behind_on_another_device_is_refused():
    """A model moved without its optimizer: named, and nothing stepped; moved back it goes on."""
    params = [torch.nn.Parameter(torch.ones(5, device="cuda"))]
    optimizer = optim.AdamW([("w", params[0])], **BASE)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    data = params[0].data
    params[0].grad = None
    params[0].data = data.cpu()
    params[0].grad = torch.ones(5)
    with pytest.raises(ValueError, match=r"parameter 'w': state slot 'exp_avg' is on 'cuda:0', the parameter on 'cpu'"):
        optimizer.step()
    params[0].grad = None
    params[0].data = data
    params[0].grad = torch.ones_like(data)
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 2


@pytest.mark.gpu
def test_a_gradient_on_another_device_is_refused():
    param = torch.ones(5, device="cuda")
    optimizer = rlx_gpu.AdamW(**BASE)
    optimizer.step("good", (5,), torch.ones(5, device="cuda"), torch.ones(5, device="cuda"))
    with pytest.raises(ValueError, match=r"parameter 'w': gradient is on 'cpu', the parameter on 'cuda:0'"):
        optimizer.step("w", (5,), param, torch.ones(5))
    assert (param == 1).all()
