"""What a step in the steady state does beside launching: nothing. It could be captured, and the host waits for nothing.

Kernels are left out: what runs here is the host's part, watched operation by operation.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from variants import MATRIX, SCHEDULED, VARIANTS

import rlx_gpu
from rlx_gpu import optim
from rlx_gpu.engine import elementwise, factored, inputs, launch, plan, rows, state, tables

READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "item"}
FUSED = [variant for variant, (name, _) in VARIANTS.items() if name not in MATRIX]
GATHERED = [variant for variant, (name, _) in VARIANTS.items() if name in MATRIX and name not in SCHEDULED]
WITH_LR = [variant for variant in (*FUSED, *GATHERED) if VARIANTS[variant][1]["lr"] is not None]


class Operations(TorchDispatchMode):
    """The names of torch's operations, and the sizes of the tensors that they make."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        if not name.startswith("_record_function"):  # torch's profiler, around every optimizer's step
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launched(monkeypatch):
    """The kernels that would have been launched."""
    made = []
    monkeypatch.setattr(launch, "launch", lambda kernel, *args, **constants: made.append(kernel.__name__))
    return made


def forbid(monkeypatch):
    """Nothing may be sent to a device from now on, nor may anything of torch.cuda be used that waits or records."""

    def refuse(name):
        def refused(*args, **options):
            raise AssertionError(f"{name} in a steady step")

        return refused

    for module in (tables, elementwise, factored, inputs, plan, rows, state):
        for name in ("upload", "send"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, refuse(name))
    for name in ("Event", "synchronize", "current_stream", "Stream"):
        monkeypatch.setattr(torch.cuda, name, refuse(f"torch.cuda.{name}"))
    for name in ("pin_memory", "record_stream", "item", "tolist", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse(f"torch.Tensor.{name}"))


def stepped(variant, **options):
    """An optimizer after two steps, with gradients that stay where they are."""
    name, hyper = VARIANTS[variant]
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((6, 4), (5,), (6, 4))]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = getattr(optim, name)(params, **{**hyper, **options})
    for _ in range(2):
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "guarded"])
@pytest.mark.parametrize("variant", FUSED)
def test_a_steady_step_only_launches(variant, skip, launched, monkeypatch):
    optimizer = stepped(variant, skip_nonfinite=skip)
    before = len(launched)
    forbid(monkeypatch)
    with Operations() as operations:
        optimizer.step()
    assert operations.names == []
    assert len(launched) > before


@pytest.mark.parametrize("variant", GATHERED)
def test_a_steady_step_of_muon_computes_in_a_workspace(variant, launched, monkeypatch):
    optimizer = stepped(variant, skip_nonfinite=True)
    forbid(monkeypatch)
    with Operations() as operations:
        optimizer.step()
    assert not {*operations.names} & READS
    assert operations.names.count("empty") == 1  # the workspace; the rest are products and their buffers


@pytest.mark.parametrize("variant", WITH_LR)
def test_a_learning_rate_in_a_tensor_is_never_read(variant, launched, monkeypatch):
    """It is copied on the device in every step, whatever it is then."""
    lr = torch.tensor(0.05)
    optimizer = stepped(variant, lr=lr)
    forbid(monkeypatch)
    with Operations() as operations:
        optimizer.step()
        lr.fill_(0.5)
        optimizer.step()
    assert not {*operations.names} & READS
    assert {"copy_"} <= {*operations.names}


@pytest.mark.parametrize("variant", WITH_LR)
def test_a_learning_rate_in_a_tensor_is_live(variant):
    name, hyper = VARIANTS[variant]
    lr, runs = torch.tensor(0.05, dtype=torch.float64), []
    for live in (True, False):
        params = [torch.nn.Parameter(torch.linspace(-1, 1, 24).view(6, 4)), torch.nn.Parameter(torch.ones(5))]
        optimizer = getattr(optim, name)(params, **{**hyper, "lr": lr if live else 0.05})
        for rate in (0.05, 0.01, 0.2):
            lr.fill_(rate)
            if not live:
                optimizer.param_groups[0]["lr"] = rate
            for param in params:
                param.grad = torch.full_like(param, rate + 1.0)
            optimizer.step()
        runs.append(params)
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_the_watch_would_notice(monkeypatch):
    with Operations() as operations:
        torch.ones(3).sum().item()
    assert "_local_scalar_dense" in operations.names
    forbid(monkeypatch)
    with pytest.raises(AssertionError, match="send"):
        tables.send(torch.ones(1).numpy(), torch.ones(1))


def test_the_trait_takes_a_learning_rate_in_a_tensor():
    lr, runs = torch.tensor(0.05), []
    for live in (True, False):
        optimizer, param = rlx_gpu.AdamW(lr=lr if live else 0.05), torch.ones(5)
        for rate in (0.05, 0.01, 0.2):
            lr.fill_(rate)
            if not live:
                optimizer.set_lr(lr.item())
            optimizer.step("p", (5,), param, torch.full((5,), rate))
            optimizer.end_iteration()
        runs.append(param)
        assert (optimizer.hyper["lr"] is lr) == live
    assert torch.equal(*runs)
