"""Running a reference's update rule by the optimizer's name."""

from __future__ import annotations

from rlx_gpu.reference import algorithms
from rlx_gpu.reference.hyper import resolve

# Those whose update a sign or a clip bounds: an infinite gradient moves their parameters no further than a large one.
BOUNDED = ("Lion", "Sophia")


def hyper_of(name, **given):
    """All hyperparameters of an optimizer, lr 0.1 unless given."""
    return resolve(algorithms()[name].HYPERPARAMETERS, {"lr": 0.1, **given}, name)


def run(name, param, grads, *, state=None, first=1, **given):
    """Parameter and state after a step per gradient, from step `first` on."""
    algorithm, hyper = algorithms()[name], hyper_of(name, **given)
    state = algorithm.init_state(param.shape, **hyper) if state is None else state
    for step, grad in enumerate(grads, start=first):
        param, state = algorithm.update(param, grad, state, step, **hyper)
    return param, state
