"""Muon, SOAP and KronPSGD through the trait, interpreted, against their references in float64."""

from __future__ import annotations

import pytest
import torch
from matrix_models import Pair, as_array, assert_below

import rlx_gpu
from rlx_gpu.engine import launch
from rlx_gpu.matrix import kron, muon, products, soap

MUON = {
    "plain": {},
    "heavy-ball": {"nesterov": False, "momentum": 0.8},
    "polar-express": {"ns_coefficients": "polar_express", "ns_steps": 7},
    "own-coefficients": {"ns_coefficients": ((2.0, -1.5, 0.5), (1.5, -0.5, 0.0)), "ns_steps": 4},
    "match-rms": {"adjust_lr_fn": "match_rms_adamw"},
    "unit-rms": {"adjust_lr_fn": "unit_rms"},
    "spectral": {"adjust_lr_fn": "spectral"},
    "flatten": {"ndim_policy": "flatten"},
    "batch": {"ndim_policy": "batch"},
    "split": {"split_sizes": (4, 8)},
    "split-flatten": {"ndim_policy": "flatten", "split_sizes": (1, 3)},
    "split-batch": {"ndim_policy": "batch", "split_sizes": (1, 4, 1)},
    "sgd": {"fallback": "sgd", "fallback_lr_scale": 0.1},
    "adamw": {"fallback_lr_scale": 0.5, "betas": (0.8, 0.9), "fallback_eps": 1e-4},
    "all-fallback": {"matrix": False},
}
KRON = {
    "plain": {},
    "diagonal": {"max_precond_dim": 10},
    "skewed": {"max_precond_skew": 3.0},
    "flatten": {"ndim_policy": "flatten"},
    "batch": {"ndim_policy": "batch"},
    "one-factor": {"matrix": False},
}
SOAP = {
    "plain": {"stagger": False},
    "staggered": {},
    "one-side": {"max_precond_dim": 15, "stagger": False},
    "identity": {"max_precond_dim": 0},
    "flatten": {"ndim_policy": "flatten", "stagger": False},
    "batch": {"ndim_policy": "batch", "stagger": False},
    "all-fallback": {"matrix": False},
    "own-beta": {"shampoo_beta": 0.8, "stagger": False},
}


@pytest.fixture(autouse=True)
def products_of_torch(monkeypatch):
    """The tiled products have tests of their own, and interpreting them takes most of a step."""
    monkeypatch.setattr(products, "on_host", lambda device: True)


@pytest.mark.parametrize("name", ["SOAP", "KronPSGD"])
def test_with_interpreted_products(name, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(products, "SPLIT_SIDE", 0)
    monkeypatch.setattr(products, "SPLIT_WORK", 0)
    pair = Pair(name, {}, {"square": (12, 12), "other": (12, 12)})
    before = launch.launches.copy()
    for _ in range(2):
        pair.step()
    made = launch.launches - before
    assert made["symmetric_product_kernel"] > 0
    assert made["split_kernel"] > 0
    assert_below(pair.errors(), 1e-3)


@pytest.mark.parametrize("variant", MUON)
def test_muon(variant):
    """Float32 against float64, all slots; each Newton–Schulz step multiplies what rounding left by about 3.4."""
    pair = Pair("Muon", {"ns_dtype": "float32", **MUON[variant]})
    for _ in range(3):
        pair.step()
    assert_below(pair.errors(), 1e-5)
    assert_below(pair.slot_errors(), 1e-6)


@pytest.mark.parametrize("variant", ["plain", "batch"])
def test_muon_in_waves(variant, monkeypatch):
    """A workspace for some matrices at a time changes no bit; each takes a launch before and one after."""
    runs = []
    for most in (muon.MOST_ELEMENTS, 300):
        monkeypatch.setattr(muon, "MOST_ELEMENTS", most)
        pair = Pair("Muon", {"ns_dtype": "float32", **MUON[variant]})
        pair.step()
        before = launch.launches.total()
        pair.step()
        runs.append((pair, launch.launches.total() - before))
    (whole, few), (parts, many) = runs
    assert all(torch.equal(whole.params[name], parts.params[name]) for name in whole.params)
    assert few < many and (many - few) % 2 == 0


@pytest.mark.parametrize("variant", KRON)
def test_kronpsgd(variant):
    pair = Pair("KronPSGD", KRON[variant])
    for _ in range(20):
        pair.step()
    assert_below(pair.errors(), 1e-3)
    assert_below(pair.slot_errors(), 1e-3)


@pytest.mark.parametrize("variant", SOAP)
def test_soap(variant):
    """From a state in which every basis is well determined: those of a first gradient of low rank are not."""
    pair = Pair("SOAP", {"precondition_frequency": 7, **SOAP[variant]})
    pair.warm_up(12)
    for _ in range(20):
        pair.step()
    assert_below(pair.errors(), 1e-3)
    assert_below({k: e for k, e in pair.slot_errors().items() if not k.startswith("exp_avg")}, 1e-3)


def test_soap_from_the_start():
    """A square gradient of full rank has its eigenvectors from the first step on."""
    pair = Pair("SOAP", {"precondition_frequency": 5, "stagger": False}, {"square": (16, 16), "vector": (13,)})
    for _ in range(20):
        pair.step()
    assert_below(pair.errors(), 1e-3)
    assert_below(pair.slot_errors(), 1e-3)


def test_soaps_refreshes_are_spread_over_the_period():
    """Ten matrices of one shape and a period of five: two of them change their basis in each step."""
    shapes = {f"m{i}": (8, 8) for i in range(10)}
    pair = Pair("SOAP", {"precondition_frequency": 5}, shapes)
    pair.step()
    phases = [int(pair.ours.state_dict()[f"phase/m{i}"]) for i in range(10)]
    assert phases == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    changed = []
    for _ in range(10):
        before = pair.ours.state_dict()
        pair.ours.step_batch([(n, p.shape, p, torch.randn(p.shape)) for n, p in pair.params.items()])
        pair.ours.end_iteration()
        after = pair.ours.state_dict()
        changed.append([n for n in shapes if not torch.equal(before[f"left_basis/{n}"], after[f"left_basis/{n}"])])
    assert [len(names) for names in changed] == [2] * 10
    assert {name for names in changed[:5] for name in names} == set(shapes)


def test_the_reference_follows_the_phases_of_a_checkpoint():
    pair = Pair("SOAP", {"precondition_frequency": 5}, {f"m{i}": (8, 8) for i in range(3)})
    pair.step()
    state = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in pair.ours.state_dict().items()}
    pair.reference.load_state_dict(state)
    assert sorted({int(state[f"phase/m{i}"]) for i in range(3)}) == [0, 1, 3]
    for name, param in pair.params.items():
        pair.expected[name] = as_array(param)
    for _ in range(11):
        pair.step()
    assert_below(pair.errors(), 1e-3)


@pytest.mark.parametrize("name", ["Muon", "SOAP", "KronPSGD"])
def test_a_name_sent_to_the_fallback(name):
    hyper = {"ns_dtype": "float32"} if name == "Muon" else {}
    pair = Pair(name, {**hyper, "use_fallback": ["first"]}, {"first": (12, 12), "second": (12, 12)})
    for _ in range(3):
        pair.step()
    assert_below(pair.errors(), 1e-5 if name != "SOAP" else 1e-3)
    state = pair.ours.state_dict()
    slots = [{key.partition("/")[0] for key in state if key.endswith(f"/{which}")} for which in ("first", "second")]
    assert slots[0] != slots[1] or name == "Muon"


def test_blocks_of_rows_are_orthogonalised_each_by_itself():
    """A fused projection of queries, keys and values; another matrix is left whole."""
    hyper = {"ns_dtype": "float32", "split_sizes": (8, 4, 4)}
    pair = Pair("Muon", hyper, {"qkv": (16, 10), "other": (12, 10), "bias": (16,)})
    parts = {"q": (8, 10), "k": (4, 10), "v": (4, 10)}
    apart = rlx_gpu.Muon(lr=0.05, weight_decay=0.1, ns_dtype="float32")
    split = dict(zip(parts, (p.clone() for p in pair.params["qkv"].split((8, 4, 4))), strict=True))
    for _ in range(3):
        grads = {name: pair.tensor(name, param.shape) for name, param in pair.params.items()}
        pair.step(grads)
        for name, grad in zip(parts, grads["qkv"].split((8, 4, 4)), strict=True):
            apart.step(name, parts[name], split[name], grad.contiguous())
        apart.end_iteration()
    assert_below(pair.errors(), 1e-5)
    torch.testing.assert_close(torch.cat(list(split.values())), pair.params["qkv"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(dtype):
    """Not exact by design: a singular value is off by some steps of the format, whichever library multiplies."""
    pair = Pair("Muon", {"ns_dtype": dtype})
    for _ in range(3):
        pair.step()
    assert_below(pair.errors(), 0.06 if dtype == "bfloat16" else 0.01)


@pytest.mark.parametrize("name", ["Muon", "SOAP", "KronPSGD"])
@pytest.mark.parametrize("values", ["zero", "rank-one", "steep"])
def test_extreme_gradients_leave_everything_finite(name, values):
    shapes = {"tall": (20, 6), "wide": (6, 20), "square": (9, 9)}
    pair = Pair(name, {"precondition_frequency": 2} if name == "SOAP" else {}, shapes)
    for _ in range(5):
        grads = {key: torch.zeros(shape) for key, shape in shapes.items()}
        if values != "zero":
            for key, (rows, cols) in shapes.items():
                grads[key] += 1e4 * torch.outer(torch.randn(rows), torch.randn(cols))
        if values == "steep":
            for key, (rows, cols) in shapes.items():
                grads[key] += 1e-6 * torch.outer(torch.randn(rows), torch.randn(cols))
        pair.step(grads)
    for key, param in pair.params.items():
        assert torch.isfinite(param).all(), key
    if values == "zero":
        assert_below(pair.errors(), 1e-5)  # they still decay
    state = pair.ours.state_dict()
    assert all(v.isfinite().all() for v in state.values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("name", ["Muon", "SOAP", "KronPSGD"])
def test_launches_do_not_depend_on_the_number_of_matrices(name):
    def count(matrices: int) -> dict[str, int]:
        pair = Pair(name, {}, {f"m{i}": (8, 12) for i in range(matrices)} | {"vector": (9,)})
        pair.step()
        before = launch.launches.copy()
        pair.step()
        return dict(launch.launches - before)

    few, many = count(2), count(9)
    assert few == many
    assert few["fused_step_kernel"] >= 3


@pytest.mark.parametrize("name", ["Muon", "SOAP", "KronPSGD"])
def test_a_gradient_is_never_written(name):
    pair = Pair(name, {})
    grads = {key: pair.tensor(key, param.shape) for key, param in pair.params.items()}
    kept = {key: grad.clone() for key, grad in grads.items()}
    pair.step(grads)
    assert all(torch.equal(grads[key], kept[key]) for key in grads)


def test_the_momentum_buffer_is_not_normalised():
    """Without Nesterov, momentum and update are the same numbers, and only one of them may be normalised."""
    pair = Pair("Muon", {"nesterov": False}, {"matrix": (8, 8)})
    grads = {"matrix": 100.0 * torch.ones(8, 8)}
    pair.step(grads)
    assert torch.equal(pair.ours.state_dict()["momentum_buffer/matrix"], grads["matrix"])


@pytest.mark.parametrize("name", ["SOAP", "KronPSGD"])
def test_parameters_that_come_and_go(name):
    """State lies in batches: it is found again when other matrices are stepped, each with its own count."""
    hyper = {"precondition_frequency": 3, "stagger": False} if name == "SOAP" else {}
    pair = Pair(name, hyper, {f"m{i}": (9, 9) for i in range(4)})
    everything, some, others = ["m0", "m1", "m2", "m3"], ["m1", "m3"], ["m0", "m2", "m3"]
    for names in (everything, some, others, everything, some, some, everything, others):
        pair.step(names=names)
    assert_below(pair.errors(), 1e-3)
    assert_below(pair.slot_errors(), 1e-3)


@pytest.mark.parametrize(("name", "routine"), [("SOAP", soap), ("KronPSGD", kron)], ids=["SOAP", "KronPSGD"])
def test_large_batches_go_in_chunks(name, routine, monkeypatch):
    pair, whole = (Pair(name, {}, {f"m{i}": (8, 8) for i in range(5)}) for _ in range(2))
    for _ in range(3):
        whole.step()
    monkeypatch.setattr(routine, "MOST_ELEMENTS", 130)
    for _ in range(3):
        pair.step()
    for key in pair.params:
        torch.testing.assert_close(pair.params[key], whole.params[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "hyper", "what"),
    [
        ("Muon", "transposed", {"split_sizes": (4, 6)}, "split_sizes"),
        ("SOAP", "channels-last", {"ndim_policy": "flatten"}, "ndim_policy='flatten'"),
        ("KronPSGD", "channels-last", {"ndim_policy": "batch"}, "ndim_policy='batch'"),
    ],
)
def test_memory_in_which_no_matrix_can_be_found(name, shape, hyper, what):
    if shape == "transposed":
        param = torch.ones(14, 10).T
    else:
        param = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    before = param.clone()
    optimizer = getattr(rlx_gpu, name)(lr=0.1, **hyper)
    with pytest.raises(ValueError, match=rf"parameter 'weight': {what} needs contiguous memory"):
        optimizer.step("weight", tuple(param.shape), param, torch.ones_like(param))
    assert torch.equal(param, before)
    assert not [key for key in optimizer.state_dict() if "/" in key]
