"""The Hessian estimators against exact diagonals, and Sophia's use of them through both faces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from snapshots import assert_same, make_params, set_grads, snapshot, take_steps
from test_trait import arrays, run
from variants import BASE

import rlx_gpu
from rlx_gpu import hessian, optim, reference

SAMPLES = 3000
# The mean of n samples is off by σ/√n; 5 σ of them is never reached by chance with a fixed seed.
DEVIATIONS = 5.0


def mean_and_error(samples):
    """The mean of estimates of one tensor and its standard error, with a floor for rounding."""
    stacked = torch.stack(samples).double()
    return stacked.mean(0), stacked.std(0) / len(samples) ** 0.5 + 1e-5


def assert_unbiased(samples, exact):
    mean, error = mean_and_error(samples)
    assert ((mean - exact.double()).abs() <= DEVIATIONS * error).all(), (mean, exact, error)


def quadratic():
    """½ xᵀAx over two tensors that interact, its gradient's tensors, and the diagonal of A."""
    root = torch.randn(5, 5)
    matrix = root @ root.T + torch.diag(torch.tensor([1.0, -2.0, 3.0, 0.0, 5.0]))
    params = [torch.randn(2, 1, requires_grad=True), torch.randn(3, requires_grad=True)]

    def loss():
        x = torch.cat([param.flatten() for param in params])
        return 0.5 * x @ matrix @ x

    return loss, params, matrix.diagonal()


def test_hutchinson_is_unbiased():
    loss, params, diagonal = quadratic()
    generator = torch.Generator().manual_seed(1)
    samples = [hessian.hutchinson(loss(), params, generator) for _ in range(SAMPLES)]
    assert_unbiased([sample[0] for sample in samples], diagonal[:2].reshape(2, 1))
    assert_unbiased([sample[1] for sample in samples], diagonal[2:])


def test_hutchinson_is_exact_for_a_diagonal_hessian():
    """z ⊙ Hz has no noise then: the negative control of a sampled tolerance."""
    x = torch.randn(4, requires_grad=True)
    (estimate,) = hessian.hutchinson((x**4).sum() + 3 * x.square().sum(), [x])
    torch.testing.assert_close(estimate, 12 * x.detach() ** 2 + 6)


def softmax_model():
    """A linear classifier of six inputs into three classes, and the exact Gauss–Newton diagonal of its mean loss."""
    inputs = torch.randn(6, 2)
    weight, bias = torch.randn(2, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    probability = (inputs @ weight + bias).softmax(-1).detach()
    variance = probability * (1 - probability)  # ∂²/∂logit²; the same for every label, so Gauss–Newton is the Hessian
    return inputs, weight, bias, (inputs.square().T @ variance / 6, variance.mean(0))


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 3)], ids=str)
def test_gauss_newton_bartlett_is_unbiased(shape):
    """Over any leading dimensions."""
    inputs, weight, bias, exact = softmax_model()
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(SAMPLES):
        logits = (inputs @ weight + bias).reshape(shape)
        samples.append(hessian.gauss_newton_bartlett(logits, [weight, bias], generator))
    for position, diagonal in enumerate(exact):
        assert_unbiased([sample[position] for sample in samples], diagonal)
    assert all((estimate >= 0).all() for sample in samples for estimate in sample)


def test_both_estimators_see_the_same_curvature():
    """For this model Gauss–Newton is the Hessian: Hutchinson on the loss agrees, whatever the labels."""
    inputs, weight, bias, exact = softmax_model()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    samples = [
        hessian.hutchinson(torch.nn.functional.cross_entropy(inputs @ weight + bias, labels), [weight, bias])
        for _ in range(SAMPLES)
    ]
    for position, diagonal in enumerate(exact):
        assert_unbiased([sample[position] for sample in samples], diagonal)


ESTIMATORS = {
    "hutchinson": lambda logits, params, generator: hessian.hutchinson(logits.square().mean(), params, generator),
    "gauss_newton_bartlett": hessian.gauss_newton_bartlett,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_shapes_dtypes_and_generators(estimator, dtype):
    """One estimate per parameter, of its format; zeros for one that is not used; the generator alone decides."""
    weight = torch.randn(3, 4).to(dtype).requires_grad_()
    unused = torch.randn(2).to(dtype).requires_grad_()
    inputs = torch.randn(5, 3).to(dtype)

    def estimates(seed):
        generator = torch.Generator().manual_seed(seed)
        return ESTIMATORS[estimator](inputs @ weight, iter([weight, unused]), generator)

    one, same, other = estimates(1), estimates(1), estimates(2)
    for estimate, param in zip(one, (weight, unused), strict=True):
        assert estimate.shape == param.shape and estimate.dtype == dtype and not estimate.requires_grad
    assert torch.equal(one[0], same[0]) and not torch.equal(one[0], other[0])
    assert not one[1].any()
    assert weight.grad is None


def test_a_loss_without_curvature_gives_zeros():
    x = torch.randn(3, requires_grad=True)
    (estimate,) = hessian.hutchinson(x.sum(), [x])
    assert torch.equal(estimate, torch.zeros(3))


def test_estimators_work_under_no_grad():
    """Called between training steps, where gradients may be off."""
    x = torch.randn(3, requires_grad=True)
    loss = x.square().sum()
    with torch.no_grad():
        (estimate,) = hessian.hutchinson(loss, [x])
    torch.testing.assert_close(estimate, torch.full((3,), 2.0))


def sophia(params, **more):
    return optim.Sophia(params, **{**BASE, "gamma": 0.5, **more})


def expected_sophia(params, estimates, steps):
    """The reference on the same numbers: an update of the Hessian before every step."""
    oracle = reference.Sophia(**{**BASE, "gamma": 0.5})
    numbers = [param.detach().double().numpy().copy() for param in params]
    for seed in range(steps):
        twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
        set_grads(twins, seed)
        for index, (number, twin) in enumerate(zip(numbers, twins, strict=True)):
            oracle.update_hessian(str(index), estimates[index].double().numpy())
            oracle.step(str(index), number.shape, number, twin.grad.double().numpy())
        oracle.end_iteration()
    return numbers


def test_update_hessian_of_the_torch_face(path):
    """Before the first step, too; it changes neither parameters nor step counts."""
    params = make_params()
    estimates = [param.detach().square() for param in params]
    expected = expected_sophia(params, estimates, 3)
    optimizer = sophia(params)
    for seed in range(3):
        before = [param.clone() for param in params]
        optimizer.update_hessian(params, estimates)
        assert all(map(torch.equal, params, before))
        assert optimizer.state[params[0]]["step"] == seed
        take_steps(optimizer, params, [seed])
    for param, number in zip(params, expected, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), number, rtol=2e-5, atol=2e-6)


def test_update_hessian_of_the_trait(path):
    own, expected = arrays(0), arrays(0)
    ours, theirs = (package.Sophia(**BASE, gamma=0.5) for package in (rlx_gpu, reference))
    for optimizer, params in ((ours, own), (theirs, expected)):
        run(optimizer, params, [0])
        optimizer.update_hessian("weight", arrays(7)["weight"] ** 2)
        run(optimizer, params, [1, 2])
    for name, param in own.items():
        np.testing.assert_allclose(param, expected[name], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(ours.state_dict()["hessian/weight"], theirs.state_dict()["hessian/weight"], rtol=2e-5)


def test_a_part_of_the_parameters(path):
    params = make_params()
    optimizer = sophia(params)
    take_steps(optimizer, params, [0])
    optimizer.update_hessian([params[1]], [torch.ones(5)])
    assert torch.allclose(optimizer.state[params[1]]["hessian"], torch.full((5,), 0.01))
    assert not optimizer.state[params[0]]["hessian"].any()
    take_steps(optimizer, params, [1])
    assert optimizer.state[params[1]]["step"] == 2


def test_estimates_of_any_layout(path):
    params = make_params()
    plain, strided = sophia(params), sophia(params)
    estimate = torch.randn(4, 6)
    plain.update_hessian([params[0]], [estimate])
    strided.update_hessian([params[0]], [estimate.T.contiguous().T])
    assert torch.equal(plain.state[params[0]]["hessian"], strided.state[params[0]]["hessian"])


@pytest.mark.parametrize("skip", [False, True])
def test_an_estimate_that_is_not_finite(skip, path):
    params = make_params()
    optimizer = sophia(params, skip_nonfinite=skip)
    take_steps(optimizer, params, [0])
    before = snapshot(optimizer, params)
    optimizer.update_hessian(params[:2], [torch.ones(4, 6), torch.full((5,), float("nan"))])
    if skip:
        assert_same(snapshot(optimizer, params), before)
    else:
        assert optimizer.state[params[1]]["hessian"].isnan().all()
        assert optimizer.state[params[0]]["hessian"].isfinite().all()


def test_bad_estimates_change_nothing(path):
    named = list(zip(("weight", "bias", "scale"), make_params(), strict=True))
    params = [param for _, param in named]
    optimizer = sophia(named)
    take_steps(optimizer, params, [0])
    before = snapshot(optimizer, params)
    good = torch.ones(4, 6)
    for targets, estimates, error, message in (
        (params[:2], [good], ValueError, r"2 params but 1 estimates"),
        ([params[0], torch.ones(5)], [good, torch.ones(5)], ValueError, r"params\[1\] is not a parameter of this"),
        (
            [params[0], params[0]],
            [good, good],
            ValueError,
            r"params\[1\] is not a .*, or is given twice",
        ),
        (params[:2], [good, torch.ones(6)], ValueError, r"parameter 'bias': estimate has shape \(6,\).*\(5,\)"),
        (params[:2], [good, torch.ones(5).to_sparse()], TypeError, r"parameter 'bias': estimate is sparse"),
        (params[:2], [good, torch.ones(5).int()], TypeError, r"parameter 'bias': estimate has dtype torch.int32"),
        (params[:2], [good, [1.0] * 5], TypeError, r"parameter 'bias': estimate must be a torch.Tensor, got list"),
    ):
        with pytest.raises(error, match=message):
            optimizer.update_hessian(targets, estimates)
        assert_same(snapshot(optimizer, params), before)


def test_the_trait_wants_a_step_first(path):
    optimizer = rlx_gpu.Sophia(**BASE)
    with pytest.raises(ValueError, match=r"parameter 'p': step it once before update_hessian"):
        optimizer.update_hessian("p", np.ones(3, np.float32))
    optimizer.step("p", (3,), np.ones(3, np.float32), np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"parameter 'p': estimate has shape \(4,\), expected \(3,\)"):
        optimizer.update_hessian("p", np.ones(4, np.float32))
