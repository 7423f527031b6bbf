"""Parameters and gradients that cannot be stepped: refused by name with both values, and nothing has changed.

Every case is given as the last of three parameters, so that a check which came too late would have stepped the others.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from snapshots import assert_same, make_params, set_grads, snapshot, take_steps
from variants import BASE, OPTIMIZERS

import rlx_gpu
from rlx_gpu import optim

GOOD = torch.ones(4, 6)


# What is wrong: the parameter (None: a good one), the gradient, the error and what its message says.
BAD_GRADS = {
    "shape": (torch.ones(6, 4), ValueError, r"shape.*\(6, 4\).*\(4, 6\)"),
    "fewer-dimensions": (torch.ones(24), ValueError, r"shape.*\(24,\).*\(4, 6\)"),
    "broadcastable": (torch.ones(1, 6), ValueError, r"shape.*\(1, 6\).*\(4, 6\)"),
    "integers": (torch.ones(4, 6, dtype=torch.int32), TypeError, r"dtype torch.int32"),
    "booleans": (torch.ones(4, 6, dtype=torch.bool), TypeError, r"dtype torch.bool"),
    "complex": (torch.ones(4, 6, dtype=torch.complex64), TypeError, r"complex \(torch.complex64\)"),
    "sparse": (torch.ones(4, 6).to_sparse(), TypeError, r"sparse \(torch.sparse_coo\)"),
    "another-device": (torch.ones(4, 6, device="meta"), ValueError, r"'meta'.*'cpu'"),
}
BAD_PARAMS = {
    "integers": (torch.ones(4, 6, dtype=torch.int64), TypeError, r"dtype.*torch.int64"),
    "complex": (torch.ones(4, 6, dtype=torch.complex64), TypeError, r"dtype.*torch.complex64"),
    "meta": (torch.ones(4, 6, device="meta"), ValueError, r"'meta'.*'cpu' or 'cuda'"),
    "gaps": (torch.ones(4, 12)[:, ::2], ValueError, r"gaps or overlaps.*shape \(4, 6\), stride \(12, 2\)"),
    "expanded": (torch.ones(1, 6).expand(4, 6), ValueError, r"gaps or overlaps.*shape \(4, 6\), stride \(0, 1\)"),
    "overlapping": (torch.ones(9).as_strided((4, 6), (1, 1)), ValueError, r"gaps or overlaps.*stride \(1, 1\)"),
    "sparse": (torch.ones(4, 6).to_sparse(), TypeError, r"layout is torch.sparse_coo"),
}


def stepped_trait(name="AdamW"):
    optimizer = getattr(rlx_gpu, name)(**BASE)
    params = {"first": torch.ones(5), "second": torch.ones(()), "third": torch.ones(4, 6)}
    optimizer.step_batch([(key, value.shape, value, torch.ones_like(value)) for key, value in params.items()])
    optimizer.end_iteration()
    return optimizer, params


def refused_by_trait(optimizer, params, third, grad, error, message):
    """The third parameter and gradient as given, after two good ones."""
    before = snapshot(optimizer, params)
    items = [(key, params[key].shape, params[key], torch.ones_like(params[key])) for key in ("first", "second")]
    with pytest.raises(error, match=rf"parameter 'third'.*{message}"):
        optimizer.step_batch([*items, ("third", (4, 6), third, grad)])
    assert_same(snapshot(optimizer, params), before)
    optimizer.step_batch([*items, ("third", (4, 6), params["third"], GOOD)])  # and the iteration was not used up


@pytest.mark.parametrize("fault", BAD_GRADS)
def test_gradient_in_the_trait(fault, path):
    grad, error, message = BAD_GRADS[fault]
    optimizer, params = stepped_trait()
    refused_by_trait(optimizer, params, params["third"], grad, error, message)


@pytest.mark.parametrize("fault", BAD_PARAMS)
def test_parameter_in_the_trait(fault, path):
    third, error, message = BAD_PARAMS[fault]
    optimizer, params = stepped_trait()
    kept = third.clone()
    refused_by_trait(optimizer, params, third, GOOD, error, message)
    if third.device.type == "cpu":
        assert torch.equal(third.to_dense(), kept.to_dense())


def test_float64_on_the_kernels(path):
    """Only CPU tensors without Triton take float64."""
    optimizer, params = stepped_trait()
    third, grad = torch.ones(4, 6, dtype=torch.float64), GOOD.double()
    fresh = rlx_gpu.AdamW(**BASE)
    if path == "kernels":
        refused_by_trait(optimizer, params, third, GOOD, TypeError, "dtype is torch.float64, the kernels take float32")
        with pytest.raises(TypeError, match=r"gradient has dtype torch.float64, must be one of float32"):
            fresh.step("third", (4, 6), GOOD.clone(), grad)
    else:
        fresh.step("third", (4, 6), third, grad)
        assert fresh.state_dict()["exp_avg/third"].dtype == torch.float64
        with pytest.raises(ValueError, match=r"parameter 'third': dtype torch.float64 does not match.*torch.float32"):
            optimizer.step("third", (4, 6), third, grad)


NOT_ARRAYS = {"list": [1.0, 2.0], "none": None, "number": 1.0, "text": "weights"}


@pytest.mark.parametrize("what", ["param", "grad"])
@pytest.mark.parametrize("kind", NOT_ARRAYS)
def test_no_array_at_all_in_the_trait(kind, what, path):
    optimizer, params = stepped_trait()
    third, grad = (NOT_ARRAYS[kind], GOOD) if what == "param" else (params["third"], NOT_ARRAYS[kind])
    message = rf"{what} must be a torch tensor, a NumPy array or have __dlpack__, got {type(NOT_ARRAYS[kind]).__name__}"
    refused_by_trait(optimizer, params, third, grad, TypeError, message)


NUMPY = {
    "integers": (lambda: np.ones((4, 6), np.int32), TypeError, r"torch.int32"),
    "text": (lambda: np.full((4, 6), "x"), TypeError, r"must be a float array, got dtype"),
    "big-endian": (lambda: np.ones((4, 6), ">f4"), TypeError, r"must be a float array, got dtype"),
    "long-double": (lambda: np.ones((4, 6), np.longdouble), TypeError, r"must be a float array, got dtype"),
    "negative-strides": (lambda: np.ones((4, 6), np.float32)[::-1], ValueError, r"negative strides \(-24, 4\)"),
    "shape": (lambda: np.ones((6, 4), np.float32), ValueError, r"shape \(6, 4\), expected \(4, 6\)"),
}


@pytest.mark.parametrize("what", ["param", "grad"])
@pytest.mark.parametrize("fault", NUMPY)
def test_numpy_arrays(fault, what, path):
    make, error, message = NUMPY[fault]
    optimizer, params = stepped_trait()
    third, grad = (make(), GOOD) if what == "param" else (params["third"], make())
    refused_by_trait(optimizer, params, third, grad, error, message)


def test_numpy_parameters_that_cannot_be_written(path):
    optimizer, params = stepped_trait()
    third = np.ones((4, 6), np.float32)
    third.flags.writeable = False
    refused_by_trait(optimizer, params, third, GOOD, ValueError, "param is read-only")
    gaps = np.ones((4, 12), np.float32)[:, ::2]
    optimizer.end_iteration()
    refused_by_trait(optimizer, params, gaps, GOOD, ValueError, r"gaps or overlaps.*stride \(12, 2\)")


CHANGES = {
    "shape": (torch.ones(6, 4), ValueError, r"shape \(6, 4\), expected \(4, 6\)"),
    "dtype": (
        torch.ones(4, 6, dtype=torch.bfloat16),
        ValueError,
        r"dtype torch.bfloat16 does not match.*float32",
    ),
    "memory order": (torch.ones(6, 4).T, ValueError, r"state slot 'exp_avg' has stride \(6, 1\).*needs \(1, 4\)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_parameter_that_changed_in_the_trait(change, path):
    third, error, message = CHANGES[change]
    optimizer, params = stepped_trait()
    refused_by_trait(optimizer, params, third, GOOD.to(third.dtype), error, message)


def test_another_shape_under_a_known_name(path):
    optimizer, params = stepped_trait()
    before = snapshot(optimizer, params)
    with pytest.raises(ValueError, match=r"parameter 'third': shape \(2, 3\) does not match its state's \(4, 6\)"):
        optimizer.step("third", (2, 3), torch.ones(2, 3), torch.ones(2, 3))
    assert_same(snapshot(optimizer, params), before)


def named_params():
    return list(zip(("weight", "bias", "scale"), make_params(), strict=True))


def refused_by_torch(optimizer, params, error, message):
    before = snapshot(optimizer, params)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert_same(snapshot(optimizer, params), before)


TORCH_REFUSES_ITSELF = {
    "shape",
    "fewer-dimensions",
    "broadcastable",
    "integers",
    "booleans",
    "complex",
    "another-device",
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sparse_gradient_in_the_torch_face(name, path):
    """The others, torch refuses when they are assigned."""
    named = named_params()[::-1]
    params = [param for _, param in named]
    optimizer = getattr(optim, name)(named, **BASE)
    take_steps(optimizer, params, [0])
    set_grads(params, 1)
    params[-1].grad = GOOD.to_sparse()
    refused_by_torch(optimizer, params, TypeError, r"parameter 'weight': gradient is sparse \(torch.sparse_coo\)")
    take_steps(optimizer, params, [1])
    assert optimizer.state[params[0]]["step"] == 2


@pytest.mark.parametrize("fault", sorted(TORCH_REFUSES_ITSELF))
def test_other_gradients_never_get_past_torch(fault):
    with pytest.raises((RuntimeError, TypeError)):
        torch.nn.Parameter(torch.ones(4, 6)).grad = BAD_GRADS[fault][0]


def test_the_first_step_is_refused_before_any_parameter_moves(path):
    params = make_params()[::-1]
    optimizer = optim.AdamW(params, **BASE)
    before = [param.clone() for param in params]
    set_grads(params, 0)
    params[-1].grad = GOOD.to_sparse()
    with pytest.raises(TypeError, match=r"parameter \"param_groups\[0\]\['params'\]\[2\]\": gradient is sparse"):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    assert not any(optimizer.state.values())
    take_steps(optimizer, params, [0])


@pytest.mark.parametrize("fault", sorted(BAD_PARAMS.keys() - {"integers"}))
def test_parameter_in_the_torch_face(fault):
    """Refused by the constructor and by add_param_group, by name."""
    bad, error, message = BAD_PARAMS[fault]
    with pytest.raises(error, match=rf"parameter 'bad'.*{message}"):
        optim.AdamW([("good", GOOD.clone().requires_grad_()), ("bad", bad.requires_grad_())], **BASE)
    params = make_params()
    optimizer = optim.AdamW(params, **BASE)
    before = snapshot(optimizer, params)
    with pytest.raises(error, match=rf"parameter \"param_groups\[1\]\['params'\]\[0\]\".*{message}"):
        optimizer.add_param_group({"params": [bad]})
    assert_same(snapshot(optimizer, params), before)


STATE_CHANGES = {
    "shape": (lambda value: value[:2], r"shape \(2, 6\), the parameter needs \(4, 6\)"),
    "dtype": (lambda value: value.bfloat16(), r"dtype torch.bfloat16, the storage asks for torch.float32"),
    "device": (lambda value: value.to("meta"), r"on 'meta', the parameter on 'cpu'"),
    "memory order": (lambda value: value.T.contiguous().T, r"stride \(1, 4\).*needs \(6, 1\)"),
    "no tensor": (lambda value: value.numpy(), r"must be a torch.Tensor, got ndarray"),
}


@pytest.mark.parametrize("change", STATE_CHANGES)
def test_state_that_no_longer_fits(change, path):
    spoil, message = STATE_CHANGES[change]
    named = named_params()[::-1]
    params = [param for _, param in named]
    optimizer = optim.AdamW(named, **BASE)
    take_steps(optimizer, params, [0])
    before = [param.clone() for param in params]
    good = optimizer.state[params[-1]]["exp_avg"]
    optimizer.state[params[-1]]["exp_avg"] = spoil(good)
    set_grads(params, 1)
    with pytest.raises(ValueError, match=rf"parameter 'weight': state slot 'exp_avg' .*{message}"):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    optimizer.state[params[-1]]["exp_avg"] = good
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 2


@pytest.mark.parametrize("value", [-1.0, 0.5, float("nan")])
@pytest.mark.parametrize("how", ["written", "replaced"])
def test_a_step_count_that_is_none(how, value, path):
    named = named_params()[::-1]
    params = [param for _, param in named]
    optimizer = optim.AdamW(named, **BASE)
    take_steps(optimizer, params, [0])
    before = [param.clone() for param in params]
    if how == "written":
        optimizer.state[params[-1]]["step"].fill_(value)
    else:
        optimizer.state[params[-1]]["step"] = torch.tensor(value)
    with pytest.raises(ValueError, match=r"parameter 'weight': state slot 'step' must be a whole number from 0, got"):
        optimizer.step()
    assert all(map(torch.equal, params, before))


def test_a_value_of_the_users_own_in_the_state_is_left_alone(path):
    named = named_params()[::-1]
    params = [param for _, param in named]
    optimizer, plain = optim.AdamW(named, **BASE), named_params()[::-1]
    other = optim.AdamW(plain, **BASE)
    take_steps(optimizer, params, [0])
    optimizer.state[params[-1]]["note"] = "frozen soon"
    take_steps(optimizer, params, [1])
    take_steps(other, [param for _, param in plain], [0, 1])
    assert optimizer.state[params[-1]]["note"] == "frozen soon"
    assert all(map(torch.equal, params, (param for _, param in plain)))


def test_a_lazily_negated_view(path):
    """Such a tensor keeps a bit, and not its values, in memory."""
    negated = torch._neg_view(torch.ones(4, 6))
    assert negated.is_neg()
    optimizer, params = stepped_trait()
    refused_by_trait(optimizer, params, params["third"], negated, TypeError, r"gradient is a lazily negated view")
    optimizer.end_iteration()
    refused_by_trait(optimizer, params, negated, GOOD, TypeError, r"is a lazily negated view")
