"""Hazards of streams, races and very large tensors."""

from __future__ import annotations

import threading

import pytest
import torch
from gpu_models import NUMEL, make, make_params
from variants import SCHEDULED, VARIANTS

import rlx_gpu
from rlx_gpu import optim
from rlx_gpu.engine.norms import squared_norm


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_that_another_stream_reads_is_not_given_away(variant):
    """Plans made on one stream, used on another that is far behind, and replaced: what the first stream then allocates
    and writes is not what the second still reads.
    """
    skip = VARIANTS[variant][0] not in SCHEDULED
    models = []
    for slow in (True, False):
        torch.manual_seed(0)
        params = make_params("cuda", 1 << 16)
        optimizer = make(variant, params, skip_nonfinite=skip)
        optimizer.step()
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        for _ in range(3):
            with torch.cuda.stream(stream):
                if slow:
                    torch.cuda._sleep(100_000_000)
                optimizer.step()
            optimizer._engine.forget()  # its tables are freed while they are read
            if slow:
                garbage = [
                    torch.full((size,), 1 << 40, dtype=torch.int64, device="cuda") for size in (64, 512, 4096) * 40
                ]
                del garbage
            stream.synchronize()
            optimizer.step()
            torch.cuda.synchronize()
        models.append(params)
    assert all(map(torch.equal, *models))


@pytest.mark.gpu
def test_adafactor_is_the_same_every_time():
    """Its moments are read and written by the same threads."""
    runs = []
    for _ in range(20):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in ((1000, 77), (64, 4096), (33, 50))]
        optimizer = optim.Adafactor(params)
        for _ in range(5):
            for param in params:
                param.grad = torch.randn_like(param)
            optimizer.step()
        runs.append([*params, *(value for state in optimizer.state.values() for value in state.values())])
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


@pytest.mark.gpu
def test_the_norm_of_a_very_large_tensor():
    """More partial sums than one program adds up."""
    x = torch.randn(64 * NUMEL, device="cuda")
    wanted = x.double().square().sum()
    found, nonfinite = squared_norm([x], x.device).double().unbind()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    assert nonfinite == 0


@pytest.mark.gpu
def test_two_threads_step_on_streams_of_their_own():
    def train(seed, result):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            params = [torch.nn.Parameter(torch.full((5000,), float(seed), device="cuda"))]
            optimizer = optim.AdamW(params, lr=0.1)
            for _ in range(50):
                params[0].grad = params[0].detach().clone()
                optimizer.step()
            result[seed] = params[0].detach().cpu()

    alone: dict[int, torch.Tensor] = {}
    together: dict[int, torch.Tensor] = {}
    for seed in (1, 2):
        train(seed, alone)
    threads = [threading.Thread(target=train, args=(seed, together)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(alone[seed], together[seed]) for seed in (1, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["AdamW", "LAMB", "Adafactor", "Muon", "SOAP"])
def test_nothing_spills_on_this_device(name):
    """Of all variants that this process has loaded; other architectures are compiled for without a GPU."""
    from rlx_gpu.kernels import elementwise, factored, reductions, rows, symmetric, words

    params = make_params("cuda", 1 << 18)
    optimizer = getattr(optim, name)(params, lr=0.1, max_grad_norm=1.0)
    for _ in range(2):
        optimizer.step()
    torch.cuda.synchronize()
    loaded = [
        (kernel.__name__, compiled)
        for module in (elementwise, factored, reductions, rows, symmetric, words)
        for key, kernel in vars(module).items()
        if key.endswith("_kernel") and hasattr(kernel, "device_caches")
        for cache in kernel.device_caches.values()
        for compiled in cache[0].values()
        if compiled.module is not None
    ]
    assert loaded and [label for label, compiled in loaded if compiled.n_spills] == []


@pytest.fixture
def mesh(device):
    """Two ranks, of which the other is made up."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh(device, (2,))
    torch.distributed.destroy_process_group()


def test_dtensors_are_refused_by_name(device, mesh):
    """As parameters, and as gradients of a parameter that has been stepped."""
    from torch.distributed.tensor import Shard, distribute_tensor

    sharded = distribute_tensor(torch.randn(4, 6, device=device), mesh, [Shard(0)])
    with pytest.raises(TypeError, match=r"params'\]\[0\]. is a DTensor"):
        optim.AdamW([torch.nn.Parameter(sharded)], lr=0.1)
    optimizer, param = rlx_gpu.AdamW(lr=0.1), torch.ones(4, 6, device=device)
    optimizer.step("w", (4, 6), param, torch.ones_like(param))
    optimizer.end_iteration()
    before = param.clone()
    with pytest.raises(TypeError, match="parameter 'w': gradient is a DTensor"):
        optimizer.step("w", (4, 6), param, sharded)
    assert torch.equal(param, before)
