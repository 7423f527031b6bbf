"""Sets of gradients that change from step to step (experts, dropped layers, several heads), as if each were alone."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
from snapshots import bits
from variants import BASE, ELEMENTWISE, MATRIX, OPTIMIZERS, named

import rlx_gpu
from rlx_gpu import optim
from rlx_gpu.engine import elementwise, factored, inputs, norms, rows, state, sums

SHAPES = {
    "expert0": (6, 4),
    "expert1": (6, 4),
    "expert2": (6, 4),
    "head0": (3, 5),
    "head1": (5, 3),
    "bias": (5,),
    "scale": (),
    "late": (6, 4),
}
STEPS, FIRST_OF_LATE, BAD = 8, 6, (2, 6)
HYPER = {
    "SGD": {"momentum": 0.9, "dampening": 0.5},
    "NAdamW": {"momentum_decay": 0.9},
    "SOAP": {"precondition_frequency": 2, "stagger": False},
    "Muon": {"ns_dtype": "float32"},
}
OTHERS = ("NAdamW", "LAMB", "SOAP")  # that are tried on the other face as well
IN_BATCHES = 1e-6  # of the largest magnitude: a batched product may sum in another order than a single one


def tensors(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def sets():
    """The names that have a gradient at each step: new sets, none, one that comes back and then stays."""
    shuffled = random.Random(21)
    names = [name for name in SHAPES if name != "late"]
    found = [shuffled.sample(names, shuffled.randint(2, len(names))) for _ in range(STEPS)]
    found[3] = []
    found[4] = found[5] = found[1][::-1]
    return [own + ["late"] * (step >= FIRST_OF_LATE) for step, own in enumerate(found)]


def gradients(step, names, dtype, bad=False):
    found = {name: grad for name, grad in tensors(100 + step, dtype).items() if name in names}
    if bad and names:
        found[names[0]].view(-1)[0] = float("nan")
    return {name: found[name] for name in names}


def options_of(name, **more):
    return {**BASE, **HYPER.get(name, {}), **more}


class TorchFace:
    """The torch face; a parameter alone keeps its place among all, from which its random bits are counted."""

    def __init__(self, name, params, options):
        self.params = {key: torch.nn.Parameter(param.clone()) for key, param in params.items()}
        own = list(self.params.items())
        group = {"params": own, "matrix": True} if name == "Muon" else {"params": own}
        self.optimizer = getattr(optim, name)([group], **options)

    def step(self, grads):
        for key, param in self.params.items():
            param.grad = grads.get(key)
        self.optimizer.step()

    def numbers(self, key):
        """The parameter and everything of its state, by slot."""
        return {"param": self.params[key].detach(), **self.optimizer.state.get(self.params[key], {})}


class Trait:
    """The trait; its steps get subsets, in any order."""

    def __init__(self, name, params, options):
        self.params = {key: param.clone() for key, param in params.items()}
        self.optimizer = getattr(rlx_gpu, name)(**options)

    def step(self, grads):
        items = [(key, SHAPES[key], self.params[key], grad) for key, grad in grads.items()]
        self.optimizer.step_batch(items)
        self.optimizer.end_iteration()

    def numbers(self, key):
        own = self.optimizer.state_dict().items()
        slots = {slot.partition("/")[0]: value for slot, value in own if slot.partition("/")[2] == key}
        return {"param": self.params[key], **slots}


FACES = {"torch": TorchFace, "trait": Trait}


def assert_as_if_alone(face, name, dtype=torch.float32, bad=(), **options):
    """Runs the sets in company, and each parameter alone; compares parameters, slots and steps."""
    options = options_of(name, **options)
    start, schedule = tensors(0, dtype), sets()
    company = FACES[face](name, start, options)
    alone = {key: FACES[face](name, start, options) for key in SHAPES}
    for step, names in enumerate(schedule):
        company.step(gradients(step, names, dtype, bad=step in bad))
        for key in names if step not in bad else ():
            alone[key].step({key: gradients(step, names, dtype)[key]})
    for key in SHAPES:
        found, wanted = company.numbers(key), alone[key].numbers(key)
        assert found.keys() == wanted.keys(), key
        assert int(found["step"]) == sum(key in names for i, names in enumerate(schedule) if i not in bad)
        for slot, value in wanted.items():
            if name in MATRIX and slot != "step":
                scale = float(value.abs().max()) if value.numel() else 0.0
                torch.testing.assert_close(
                    found[slot],
                    value,
                    rtol=0,
                    atol=IN_BATCHES * scale,
                    msg=lambda text, what=(key, slot): f"{what}: {text}",
                )
            else:
                assert bits(found[slot]) == bits(value), (key, slot)


@pytest.mark.parametrize(
    ("name", "face"), [(name, "torch") for name in OPTIMIZERS] + [(name, "trait") for name in OTHERS]
)
def test_every_parameter_is_stepped_as_if_it_were_alone(name, face):
    assert_as_if_alone(face, name)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_random_bits_are_the_same_in_any_company(name, face):
    assert_as_if_alone(face, name, torch.bfloat16, rounding="stochastic", seed=7, state_dtype="bfloat16")


@pytest.mark.parametrize(
    ("name", "face"), [(name, "trait") for name in OPTIMIZERS] + [(name, "torch") for name in OTHERS]
)
def test_skipped_steps_count_for_nobody(name, face):
    """One gradient that is not finite leaves everything as it was, whoever was in the set, and for the first time."""
    assert_as_if_alone(face, name, bad=BAD, skip_nonfinite=True)


def test_the_sets_are_what_is_meant():
    found = sets()
    assert [] in found and found[5] == found[4] == found[1][::-1]
    assert len({frozenset(names) for names in found}) > STEPS / 2
    assert all(("late" in names) == (step >= FIRST_OF_LATE) for step, names in enumerate(found))
    assert all(found[step] for step in BAD)
    good = [names for step, names in enumerate(found) if step not in BAD]
    assert all(sum(name in names for names in good) >= (1 if name == "late" else 2) for name in SHAPES)


@pytest.fixture
def sent(monkeypatch):
    """What has been sent to devices: the names of the functions, in order."""
    made = []

    def spied(name, real, *given):
        made.append(name)
        return real(*given)

    for module in (elementwise, factored, inputs, norms, rows, state, sums):
        for name in ("send", "upload"):
            real = getattr(module, name, None)
            if real is not None:
                monkeypatch.setattr(module, name, partial(spied, f"{module.__name__}.{name}", real))
    return made


@pytest.mark.parametrize(
    ("chosen", "guarded"),
    [(chosen, False) for chosen in ELEMENTWISE] + [(named("AdamW"), True), (named("Adafactor"), True)],
    ids=lambda value: "guarded" if value is True else str(value or "plain"),
)
def test_a_new_set_makes_no_plan_and_sends_one_table(chosen, guarded, sent):
    """Once every parameter has a state; the same gradients again send nothing at all."""
    run = TorchFace(chosen.algorithm.name, tensors(0), {**chosen.hyper, "skip_nonfinite": guarded})
    grads = tensors(1)
    run.step(grads)
    plans = list(run.optimizer._engine.steps)
    shuffled = random.Random(0)
    for _ in range(3):
        own = {key: grads[key] for key in shuffled.sample(list(SHAPES), 4)}
        sent.clear()
        run.step(own)
        assert sent == ["rlx_gpu.engine.inputs.send"]
        sent.clear()
        run.step(own)
        assert sent == []
    assert all(map(lambda one, other: one is other, run.optimizer._engine.steps, plans))
    assert len(list(run.optimizer._engine.steps)) == len(plans) == 1


@pytest.mark.parametrize("name", MATRIX)
def test_a_new_set_of_matrices_makes_no_plan(name):
    run = TorchFace(name, tensors(0), options_of(name))
    grads = tensors(1)
    run.step(grads)
    (plan,) = run.optimizer._engine.steps
    for names in (["expert0"], ["expert2", "bias"], ["head0", "head1", "expert1"], []):
        run.step({key: grads[key] for key in names})
        assert [one is plan for one in run.optimizer._engine.steps] == [True]


@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_the_trait_steps_subsets_by_the_plan_of_all(name, sent):
    """Where those are not too few for it."""
    run, grads = Trait(name, tensors(0), options_of(name)), tensors(1)
    run.step(grads)
    (plan,) = run.optimizer._engine.steps
    for names in (["expert0", "head1", "bias"], ["scale", "expert2", "expert1"], ["late", "head0"]):
        sent.clear()
        run.step({key: grads[key] for key in names})
        assert [one is plan for one in run.optimizer._engine.steps] == [True]
        assert sent == ["rlx_gpu.engine.inputs.send"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_have_no_state(name, path):
    run = TorchFace(name, tensors(0), options_of(name))
    frozen = [key for key in SHAPES if key.startswith("head")]
    before = {key: run.params[key].detach().clone() for key in frozen}
    for key in frozen:
        run.params[key].requires_grad_(False)
    for step in range(2):
        run.step({key: grad for key, grad in tensors(step).items() if key not in frozen})
    assert {id(param) for param in run.optimizer.state} == {id(run.params[key]) for key in SHAPES if key not in frozen}
    assert all(torch.equal(run.params[key], value) for key, value in before.items())
    assert len(run.optimizer.state_dict()["state"]) == len(SHAPES) - len(frozen)
    assert np.isfinite([float(param.detach().sum()) for param in run.params.values()]).all()
