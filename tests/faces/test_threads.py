"""Threads: optimizers of their own, one optimizer for both, and streams other than the one a plan was made on."""

from __future__ import annotations

import threading

import pytest
import torch
from snapshots import assert_same, make_params, set_grads, snapshot
from variants import SCHEDULED, VARIANTS

from rlx_gpu import optim
from rlx_gpu.engine import launch

STEPS = 20


def make(variant, params, **more):
    name, hyper = VARIANTS[variant]
    return getattr(optim, name)(params, **{**hyper, **more})


def at_once(*jobs):
    """Runs the jobs in threads that start together; raises what one of them raised."""
    start, errors = threading.Barrier(len(jobs)), []

    def run(job):
        try:
            start.wait()
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def steps(optimizer, params, count=STEPS):
    for seed in range(count):
        set_grads(params, seed % 3)
        optimizer.step()


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_optimizers_from_two_threads(variant, path):
    """Each as if it were alone."""
    count = STEPS if path == "host" else 3
    models = [(make(variant, params, skip_nonfinite=True), params) for params in (make_params(), make_params(seed=1))]
    alone = [(make(variant, params, skip_nonfinite=True), params) for params in (make_params(), make_params(seed=1))]
    for optimizer, params in alone:
        steps(optimizer, params, count)
    at_once(*(lambda model=model: steps(*model, count) for model in models))
    for (optimizer, params), (other, others) in zip(models, alone, strict=True):
        assert_same(snapshot(optimizer, params), snapshot(other, others))


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_optimizer_from_two_threads(variant, path):
    """Steps come one after the other, the first one, which makes the state, too."""
    count = STEPS if path == "host" else 2
    own, other = make_params(), make_params()
    ours, plain = make(variant, own), make(variant, other)
    for params in (own, other):
        set_grads(params, 0)

    def job():
        for _ in range(count):
            ours.step()

    at_once(job, job)
    for _ in range(2 * count):
        plain.step()
    assert_same(snapshot(ours, own), snapshot(plain, other))


def test_float32_switches_are_turned_back():
    """Those of torch belong to the process, and threads that turn them have to take turns."""
    switches = torch.backends.cuda.matmul
    before = switches.fp32_precision
    switches.fp32_precision = "tf32"
    try:
        models = [(optim.SOAP(params, lr=0.1), params) for params in (make_params(), make_params(seed=1))]
        at_once(*(lambda model=model: steps(*model, 5) for model in models))
        assert switches.fp32_precision == "tf32"
    finally:
        switches.fp32_precision = before


@pytest.mark.parametrize("variant", [variant for variant, (name, _) in VARIANTS.items() if name not in SCHEDULED])
def test_what_other_streams_read_is_held_for_them(variant, monkeypatch):
    """Streams are made up: every tensor of every launch, once a stream, and none for that which the memory is of."""
    held, stream = [], ["first"]
    monkeypatch.setattr(launch, "stream_of", lambda device: stream[0])
    monkeypatch.setattr(launch, "hold", lambda tensor: held.append((stream[0], tensor.data_ptr())))
    launched = set()
    real = launch.launch

    def spy(kernel, programs, *arguments, **constants):
        launched.update(one.data_ptr() for one in arguments if isinstance(one, torch.Tensor))
        real(kernel, programs, *arguments, **constants)

    params = make_params()
    optimizer = make(variant, params, skip_nonfinite=True, max_grad_norm=1.0)
    steps(optimizer, params, 2)
    assert not held
    for name in ("second", "third", "second", "first", "third"):
        stream[0] = name
        launched.clear()
        with monkeypatch.context() as patch:
            patch.setattr(launch, "launch", spy)
            steps(optimizer, params, 1)
        if name != "first":
            fixed = {pointer for at, pointer in held if at == name}
            workspace = launched - fixed
            assert len(workspace) <= (VARIANTS[variant][0] == "Muon")  # a step's own
    names = [at for at, _ in held]
    assert set(names) == {"second", "third"} and names.count("second") == names.count("third")
