"""What a rule says about itself is checked when it is declared, or at the latest when its row is computed."""

from __future__ import annotations

import re

import pytest
import torch
import triton
import triton.language as tl  # noqa: F401  (the interpreter looks for it beside every JIT function)

from rlx_gpu.engine.batch import Entry, Settings
from rlx_gpu.engine.buckets import BucketMember
from rlx_gpu.engine.inputs import StepInputs
from rlx_gpu.engine.rows import RowLaunch
from rlx_gpu.engine.state import STEP, Storage
from rlx_gpu.kernels.rules.matrices import APPLY, GATHER
from rlx_gpu.kernels.spec import KEY, ROW_WIDTH, FactoredSpec, MatrixSpec, Pass, Row, RuleSpec
from rlx_gpu.table import TABLE


@triton.jit
def two_rule(param, grad, state, hyper):
    """Of a row of two numbers."""
    lr, weight_decay = hyper
    return param - lr * (grad + weight_decay * param), state


@triton.jit
def swapped_rule(param, grad, state, hyper):
    """The same numbers in another order."""
    weight_decay, lr = hyper
    return param - lr * (grad + weight_decay * param), state


@triton.jit
def summing_rule(param, grad, state, hyper):
    """A first pass that leaves one sum."""
    lr, weight_decay = hyper
    corrected = grad + weight_decay * param
    return param, state, (lr * corrected * corrected,)


@triton.jit
def scaled_rule(param, grad, state, hyper):
    """A second pass that reads one sum and the count behind the row."""
    lr, weight_decay, norm_sq, numel = hyper
    return param - lr * (grad / (norm_sq + numel) + weight_decay * param), state


@triton.jit
def square(grad, hyper):
    """Of a factored rule, with a row of two numbers."""
    lr, weight_decay = hyper
    return grad * grad + lr * weight_decay


@triton.jit
def plain(hyper, step, counters):
    """Every number that it is given."""
    return hyper, counters


@triton.jit
def short(hyper, step, counters):
    """One number too few."""
    lr, weight_decay = hyper
    return (lr * weight_decay,), counters


@triton.jit
def long(hyper, step, counters):
    """One number too many."""
    lr, weight_decay = hyper
    return (lr, weight_decay, lr), counters


@triton.jit
def unpacking(hyper, step, counters):
    """One hyperparameter more than there are."""
    lr, weight_decay, momentum = hyper
    return (lr * momentum, weight_decay), counters


NAMES = ("lr", "weight_decay")
ROW = Row(NAMES, ("weight_decay",), plain)
PASSES = (Pass(two_rule, ("param",)),)


def rule(row=ROW, passes=PASSES, slots=()):
    return RuleSpec("trial", slots, passes, row)


def test_what_is_right_is_taken():
    rule()
    rule(passes=(Pass(summing_rule, (), sums=1), Pass(scaled_rule, ("param",))))
    rule(passes=(Pass(two_rule, ("param", "exp_avg")),), slots=("exp_avg",))


@pytest.mark.parametrize("stream", ["grad", "exp_avg_sq", "Param"])
def test_writes_that_are_no_stream(stream):
    message = rf"rule 'trial' writes '{stream}', which is no such stream; it has param, exp_avg"
    with pytest.raises(ValueError, match=message):
        rule(passes=(Pass(two_rule, ("param", stream)),), slots=("exp_avg",))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("lr",), id="one name too many in the rule"),
        pytest.param(("lr", "weight_decay", "eps"), id="one too few"),
        pytest.param(("weight_decay", "lr"), id="another order"),
        pytest.param(("lr", "decay"), id="another name"),
        pytest.param((), id="none"),
    ],
)
def test_a_rule_that_unpacks_another_row(names):
    message = f"rule 'trial' unpacks lr, weight_decay; its row is {', '.join(names)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        rule(Row(names))
    with pytest.raises(ValueError, match=re.escape(message)):
        FactoredSpec("trial", square, plain, plain, plain, Row(names))


def test_a_rule_of_another_order():
    with pytest.raises(ValueError, match=r"rule 'trial' unpacks weight_decay, lr; its row is lr, weight_decay"):
        rule(passes=(Pass(swapped_rule, ("param",)),))


@pytest.mark.parametrize(
    ("passes", "found", "more"),
    [
        pytest.param((Pass(scaled_rule, ("param",)),), "norm_sq, numel", "", id="no sums before"),
        pytest.param((Pass(summing_rule, (), sums=2), Pass(scaled_rule, ("param",))), "norm_sq, numel", 3, id="two"),
        pytest.param((Pass(summing_rule, (), sums=1), Pass(two_rule, ("param",))), "", 2, id="sums that it ignores"),
    ],
)
def test_another_count_of_sums(passes, found, more):
    unpacked = ", ".join((*NAMES, *([found] if found else [])))
    message = f"rule 'trial' unpacks {unpacked}; its row is lr, weight_decay" + (f" and {more} more" if more else "")
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        rule(passes=passes)


@pytest.mark.parametrize("stage", ["prepare", "apply"])
@pytest.mark.parametrize("names", [("weight_decay", "lr"), ("lr", "eps"), ("lr", "weight_decay", "momentum")])
def test_a_matrix_rule_whose_stage_has_another_row(stage, names):
    """A stage's row begins the whole's, so that one launch computes both."""
    stages = {"prepare": GATHER, "apply": APPLY}
    other = {**stages, stage: RuleSpec("stage", (), (), Row(names))}
    MatrixSpec("trial", "muon", (), ROW, **stages, scheduled=False)
    with pytest.raises(ValueError, match=r"rule 'trial': the row of 'stage' does not begin \('lr', 'weight_decay'\)"):
        MatrixSpec("trial", "muon", (), ROW, **other, scheduled=False)


def test_a_row_has_room_for_the_key():
    most = ROW_WIDTH - len(KEY)
    assert most == 29
    Row(tuple(f"number{i}" for i in range(most)))
    with pytest.raises(ValueError, match=r"a row has at most 29 numbers, got 30: \('number0', "):
        Row(tuple(f"number{i}" for i in range(most + 1)))


@pytest.mark.parametrize("scalars", [short, long, unpacking])
def test_scalars_that_do_not_fit_their_names(scalars):
    """Told by the rule's name, whatever Triton raises; no row is written."""
    spec, inputs = rule(Row(NAMES, ("weight_decay",), scalars)), StepInputs(torch.device("cpu"), 1)
    inputs.grads.fill_(1)
    settings = [Settings(TABLE["SGD"].resolve({"lr": 0.1}), Storage())]
    states = [{STEP: torch.tensor(3.0)}]
    (state,) = states
    own = [BucketMember(0, 0, Entry("p", torch.empty(0)), state, settings[0])]
    launch = RowLaunch(spec, inputs, own, advance=True)
    launch.send(settings)
    with pytest.raises(Exception) as caught:
        launch.launch()
    assert "while computing the row of rule 'trial'" in caught.value.__notes__
    assert (inputs.rows == 0).all()
