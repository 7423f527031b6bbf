"""Nothing in a step waits for the device, allocates memory of a parameter's size, or recompiles."""

from __future__ import annotations

import pytest
import torch
from gpu_models import NUMEL, make, make_grads, make_params, make_tensors
from variants import MATRIX, SCHEDULED, VARIANTS

import rlx_gpu
from rlx_gpu import optim
from rlx_gpu.engine import launch


@pytest.mark.gpu
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_never_synchronises(variant, skip, no_sync):
    skip = skip and VARIANTS[variant][0] not in SCHEDULED
    params = make_params("cuda")
    optimizer = make(variant, params, skip_nonfinite=skip)
    for _ in range(3):
        optimizer.step()
    with no_sync():
        for step in range(8):
            optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
            scale = rlx_gpu.global_grad_clip_scale([param.grad for param in params], 1.0)
            optimizer.step(grad_scale=scale)
            if step % 2:  # gradients in new memory: the tables are sent again, without waiting either
                for param in params:
                    param.grad = torch.randn_like(param)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "LAMB"])
def test_a_step_of_the_trait_never_synchronises(name, no_sync):
    params = {str(i): param.detach() for i, param in enumerate(make_params("cuda"))}
    grads = {key: torch.randn_like(param) for key, param in params.items()}
    optimizer = getattr(rlx_gpu, name)(**VARIANTS[name][1], lr_scale={"0": 0.5})
    items = [(key, param.shape, param, grads[key]) for key, param in params.items()]
    for step in range(6):
        if step < 3:
            optimizer.step_batch(items)
        else:
            with no_sync():
                optimizer.step_batch(items)
        optimizer.end_iteration()


@pytest.mark.gpu
def test_update_hessian_never_synchronises_after_the_first(no_sync):
    params = make_params("cuda")
    optimizer = make("Sophia", params)
    estimates = [param.detach().square() for param in params]
    for _ in range(2):
        optimizer.update_hessian(params, estimates)
        optimizer.step()
    with no_sync():
        optimizer.update_hessian(params, estimates)
        optimizer.step()


@pytest.mark.gpu
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("variant", [variant for variant, (name, _) in VARIANTS.items() if name not in MATRIX])
def test_a_step_allocates_no_memory_of_a_parameters_size(variant, skip):
    """The peak over steps in the steady state, against what lay there before."""
    params = make_params("cuda")
    optimizer = make(variant, params, skip_nonfinite=skip)
    for _ in range(2):
        optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(4):
        optimizer.step()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 64 * 1024  # a large parameter takes 4 MiB


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_state_takes_what_state_bytes_says(variant):
    params = make_params("cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    optimizer = make(variant, params)
    optimizer.step()
    torch.cuda.synchronize()
    taken = torch.cuda.memory_allocated() - before
    tables = 4 * NUMEL // 8  # block tables and partial sums: 12 bytes a block of 1,024 elements and less
    assert optim.state_bytes(optimizer) <= taken <= optim.state_bytes(optimizer) + tables


def variants_compiled():
    """How many variants of every kernel lie in Triton's caches."""
    from rlx_gpu.kernels import elementwise, factored, reductions, rows

    kernels = [
        value
        for module in (elementwise, factored, reductions, rows)
        for key, value in vars(module).items()
        if key.endswith("_kernel") and hasattr(value, "device_caches")
    ]
    return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())


@pytest.mark.gpu
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_recompiles(variant, skip):
    """When lr, weight decay, the step, the sizes or the number of tensors change."""
    tensors = list(make_tensors(torch.float32, "cuda").values())
    params = [torch.nn.Parameter(tensor) for tensor in tensors]
    optimizer = make(variant, params, skip_nonfinite=skip)
    for _ in range(2):
        for param, grad in zip(params, make_grads(dict(enumerate(tensors)), 0).values(), strict=True):
            param.grad = grad
        optimizer.step()
    before = variants_compiled()
    assert before > 0
    for step in range(20):
        group = optimizer.param_groups[0]
        group["weight_decay"] = 0.01 * step
        if group["lr"] is not None:
            group["lr"] = 0.0 if step == 0 else 1.0 / step
        optimizer.step(grad_scale=1.0 + step)
    for count in (1, 2, 16, 17, 128):
        more = [torch.nn.Parameter(torch.randn(16 * count, count, device="cuda")) for _ in range(count)]
        more += [torch.nn.Parameter(torch.randn(count, device="cuda"))]
        for param in more:
            param.grad = torch.randn_like(param)
        make(variant, more, skip_nonfinite=skip).step()
    assert variants_compiled() == before


@pytest.mark.parametrize("variant", VARIANTS)
def test_launches_do_not_grow_with_the_number_of_tensors(variant, device):
    """A vector and a matrix cost what forty of each cost."""

    def launches(count):
        params = [torch.nn.Parameter(torch.ones(3, device=device)) for _ in range(count)]
        params += [torch.nn.Parameter(torch.ones(2, 8, device=device)) for _ in range(count)]
        half = len(params) // 2
        optimizer = make(variant, [{"params": params[:half]}, {"params": params[half:], "lr": 0.01}])
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        before = launch.launches.total()
        optimizer.step()
        return launch.launches.total() - before

    few = launches(1)
    assert few == launches(40 if device == "cuda" else 4)
    assert few <= 11  # Adafactor: six for its matrices, three for its vectors, and a launch of rows for each


@pytest.mark.parametrize("skip", [False, True])
def test_steps_on_the_current_stream(skip, device):
    """A step on a side stream comes after what that stream did before, and before what it does next."""
    if device == "cpu":
        stream, on_stream, delay = None, torch.no_grad(), (lambda: None)
    else:
        stream = torch.cuda.Stream()
        on_stream, delay = torch.cuda.stream(stream), (lambda: torch.cuda._sleep(20_000_000))
    param = torch.nn.Parameter(torch.zeros(5000, device=device))
    optimizer = optim.SGD([param], lr=1.0, skip_nonfinite=skip)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    if stream is not None:
        torch.cuda.synchronize()
    with on_stream:
        for number in range(1, 4):
            delay()
            param.grad.fill_(float(number))  # late on this stream: a launch on another would read the old gradient
            optimizer.step()
            result = param.detach().clone()
    if stream is not None:
        stream.synchronize()
    assert (result == -6.0).all()


@pytest.mark.gpu
def test_tables_outlive_the_streams_that_read_them():
    """Many steps queued behind a busy device with new gradients each time: no table is reused before it was read."""
    param = torch.nn.Parameter(torch.zeros(4096, device="cuda"))
    optimizer = optim.SGD([param], lr=1.0)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    torch.cuda._sleep(200_000_000)
    total = 0.0
    for number in range(1, 101):
        optimizer.param_groups[0]["lr"] = 1.0 / number
        param.grad = torch.full_like(param, float(number))
        optimizer.step()
        total += 1.0
    torch.testing.assert_close(param.detach(), torch.full_like(param, -total), rtol=1e-5, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_skipped_steps_are_counted_exactly(variant, device):
    """Without waiting during the steps; state_dict waits."""
    own = [torch.nn.Parameter(torch.randn(33, device=device)), torch.nn.Parameter(torch.randn(4, 8, device=device))]
    twins = [torch.nn.Parameter(param.detach().clone()) for param in own]
    guarded, plain = make(variant, own, skip_nonfinite=True), make(variant, twins)
    generator = torch.Generator(device).manual_seed(0)
    steps = 70 if device == "cuda" else 6
    for step in range(steps):
        for param, twin in zip(own, twins, strict=True):
            twin.grad = torch.randn(param.shape, generator=generator, device=device)
            param.grad = twin.grad.clone()
        if step % 3 == 1:
            own[step % 2].grad.view(-1)[-1] = (float("nan"), float("inf"))[step % 2]
        else:
            plain.step()
        guarded.step()
    taken = steps - len(range(1, steps, 3))
    assert {state["step"].item() for state in guarded.state_dict()["state"].values()} == {taken}
    for param, twin in zip(own, twins, strict=True):
        assert torch.equal(param, twin)


@pytest.mark.gpu
def test_a_skipped_step_does_not_synchronise(no_sync):
    params = make_params("cuda")
    optimizer = make("AdamW", params, skip_nonfinite=True)
    for _ in range(3):
        optimizer.step()
    bad = torch.full_like(params[0], float("nan"))
    with no_sync():
        for step in range(10):
            params[0].grad = bad if step % 2 else torch.ones_like(bad)
            optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"].item() == 8
