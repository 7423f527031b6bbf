"""Hazards of streams, races and very large tensors."""

from __future__ import annotations

import pytest
import torch
from gpu_models import NUMEL, make, make_params
from variants import SCHEDULED, VARIANTS

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
    import threading

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
