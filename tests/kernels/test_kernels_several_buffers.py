"""A format of several buffers is an entry of the tables: both faces step, save and load it, and refuse what is none."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from several_buffers import ADDED, GROUP, MOST, added  # noqa: F401

import rlx_gpu
from rlx_gpu import optim
from rlx_gpu.compiled import variants as compiled
from rlx_gpu.table import TABLE

pytestmark = pytest.mark.usefixtures("added")
SHAPES = {"matrix": (18, 64), "other": (18, 64), "stack": (2, 3, 32), "odd": (7, 5), "vector": (130,), "scalar": ()}
OPTIMIZERS = {
    "AdamW": {},
    "LAMB": {},
    "SGD": {"momentum": 0.9},
    "MARS": {},
    "Muon": {"split_sizes": (6, 12), "ns_dtype": "float32"},
}
FORMATS = [codec.name for codec in ADDED]


def model(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def gradients(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(100 + seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


class Face:
    """A run on one of the faces.

    Args:
        face: "torch" or "trait".
        name: of the optimizer.
        state_dtype: its state's format.
        dtype: of the parameters.
    """

    def __init__(self, face, name, state_dtype, dtype=torch.float32):
        self.face, self.name, self.dtype = face, name, dtype
        self.options = {"lr": 0.05, "weight_decay": 0.1, "state_dtype": state_dtype, **OPTIMIZERS[name]}
        self.params = model(dtype)
        if face == "torch":
            self.params = {key: torch.nn.Parameter(value) for key, value in self.params.items()}
        self.optimizer = self.fresh()

    def fresh(self, params=None):
        """An optimizer that has not stepped, for the torch face of these parameters."""
        if self.face == "trait":
            return getattr(rlx_gpu, self.name)(**self.options)
        made = (params or self.params).items()
        return getattr(optim, self.name)(
            [{"params": list(made), "matrix": True} if self.name == "Muon" else {"params": list(made)}], **self.options
        )

    def step(self, seeds):
        for seed in seeds:
            grads = gradients(seed, self.dtype)
            if self.face == "trait":
                self.optimizer.step_batch([(n, SHAPES[n], p, grads[n]) for n, p in self.params.items()])
                self.optimizer.end_iteration()
            else:
                for name, param in self.params.items():
                    param.grad = grads[name]
                self.optimizer.step()
        return self

    def slots(self):
        """Every slot's tensor, by "<slot>/<name>"."""
        saved = self.optimizer.state_dict()
        if self.face == "trait":
            return {key: value for key, value in saved.items() if "/" in key and not key.startswith("step/")}
        names = dict(enumerate(self.params))
        states = ((names[index], state) for index, state in saved["state"].items())
        return {f"{slot}/{name}": value for name, state in states for slot, value in state.items() if slot != "step"}

    def resumed(self):
        """Another run with copies of the parameters that has loaded this one's state, through a file."""
        buffer = io.BytesIO()
        torch.save(self.optimizer.state_dict(), buffer)
        buffer.seek(0)
        twin = copy.copy(self)
        twin.params = copy.deepcopy(self.params)
        twin.optimizer = twin.fresh()
        twin.optimizer.load_state_dict(torch.load(buffer, weights_only=True))
        return twin

    def copied(self):
        """A copy of the optimizer and of its parameters."""
        twin = copy.copy(self)
        if self.face == "trait":
            twin.params, twin.optimizer = copy.deepcopy((self.params, self.optimizer))
        else:
            twin.optimizer = copy.deepcopy(self.optimizer)
            own = [param for group in twin.optimizer.param_groups for param in group["params"]]
            twin.params = dict(zip(self.params, own, strict=True))
        return twin


def joined(slots):
    """The float32 numbers of slots in halves, by slot; others as they are."""
    whole = {}
    for key, value in slots.items():
        slot, _, name = key.partition("/")
        if f"{slot}_low/{name}" in slots:
            low = slots[f"{slot}_low/{name}"].to(torch.int32) & 0xFFFF
            whole[key] = (value.to(torch.int32) << 16 | low).view(torch.float32)
        elif not slot.endswith("_low"):
            whole[key] = value
    return whole


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    different = [key for key in left if not np.array_equal(bits(left[key]), bits(right[key]))]
    assert not different


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_halves_of_float32_are_float32(name):
    whole = Face("torch", name, "float32").step(range(2))
    for face in ("torch", "trait"):
        split = Face(face, name, "split32").step(range(2))
        assert_same_bits(split.params, whole.params)
        slots = split.slots()
        assert {value.dtype for value in slots.values()} == {torch.int16}
        assert_same_bits(joined(slots), whole.slots())


def test_halves_beside_bfloat16_parameters():
    split, whole = (Face("torch", "AdamW", one, torch.bfloat16).step(range(2)) for one in ("split32", "float32"))
    assert_same_bits(split.params, whole.params)
    assert_same_bits(joined(split.slots()), whole.slots())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_scale_for_every_group(name):
    """Codes are what float32 state would be, to half a step; a shape without whole groups keeps float32."""
    coded, whole = (Face("torch", name, state_dtype).step([0]) for state_dtype in ("shared8", "float32"))
    found, wanted = coded.slots(), whole.slots()
    grouped = {key for key in wanted if key.partition("/")[2] in ("matrix", "other", "stack")}
    scales = {key.replace("/", "_scale/") for key in grouped}
    assert grouped and found.keys() == wanted.keys() | scales
    for key in wanted.keys() - grouped:
        assert found[key].dtype == torch.float32
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-6, atol=1e-7)
    for key in grouped:
        codes, scale, exact = found[key], found[key.replace("/", "_scale/")], wanted[key]
        rows = len(codes)
        assert (codes.dtype, scale.dtype) == (torch.int8, torch.float32)
        assert tuple(scale.shape) == (rows, codes[0].numel() // GROUP)
        groups = exact.reshape(*scale.shape, GROUP)
        torch.testing.assert_close(scale, groups.abs().amax(-1) / MOST, rtol=1e-6, atol=0)
        decoded = codes.reshape(groups.shape) * scale[..., None]
        assert ((decoded - groups).abs() <= 0.5001 * scale[..., None]).all()


@pytest.mark.parametrize("state_dtype", FORMATS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_and_copied_runs_go_on_alike(name, state_dtype):
    """Each with memory of its own, on both faces, which agree with each other."""
    ends = []
    for face in ("torch", "trait"):
        run = Face(face, name, state_dtype).step([0])
        runs = [run, run.resumed(), run.copied()]
        for twin in runs[1:]:
            assert_same_bits(twin.slots(), run.slots())
        ends += [one.step([1]) for one in runs]
    for one in ends[1:]:
        assert_same_bits(one.params, ends[0].params)
        assert_same_bits(one.slots(), ends[0].slots())
    assert len({value.data_ptr() for one in ends for value in one.params.values()}) == len(ends) * len(SHAPES)


FAULTS = {
    ("split32", "missing"): ("exp_avg_low", lambda value: None),
    ("split32", "shape"): ("exp_avg_low", lambda value: value[:-1]),
    ("shared8", "missing"): ("exp_avg_scale", lambda value: None),
    ("shared8", "shape"): ("exp_avg_scale", lambda value: value.reshape(-1)),
    ("shared8", "codes"): ("exp_avg", lambda value: value.float()),
}


@pytest.mark.parametrize("face", ["torch", "trait"])
@pytest.mark.parametrize("state_dtype,fault", FAULTS)
def test_a_wrong_buffer_is_refused_by_name(state_dtype, fault, face):
    """By the torch face at once; by the trait's fresh optimizer, which knows no format yet, at the latest at a step."""
    run = Face(face, "AdamW", state_dtype).step([0])
    key, change = FAULTS[state_dtype, fault]
    saved = run.optimizer.state_dict()
    place, key = (saved["state"][0], key) if face == "torch" else (saved, f"{key}/matrix")
    place[key] = change(place[key])
    if place[key] is None:
        del place[key]
    before = {name: value.clone() for name, value in run.params.items()}
    twin = run.copied()
    twin.optimizer = twin.fresh(twin.params)
    with pytest.raises(ValueError, match=key.replace("/matrix", "")) as refusal:
        twin.optimizer.load_state_dict(saved)
        twin.step([1])
    assert "matrix" in str(refusal.value)
    assert_same_bits(twin.params, before)


def test_matrices_whose_state_lies_in_batches_refuse_it_by_name():
    run = Face("trait", "AdamW", "split32")
    optimizer = rlx_gpu.SOAP(lr=0.1, state_dtype="split32")
    with pytest.raises(ValueError, match=r"'matrix': slot '.*' lies in a batch, which cannot be split32"):
        optimizer.step("matrix", SHAPES["matrix"], run.params["matrix"], gradients(0)["matrix"])


@pytest.mark.parametrize("codec", ADDED, ids=lambda codec: codec.name)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_kernels_can_be_listed_for_compiling(name, codec):
    """Every stream has its codec, and the table a column for each buffer."""
    listed = list(compiled._optimizer_variants(TABLE[name], codec.name))
    streams = [stream for one in listed for stream in one.constants.get("STREAMS", ())]
    own = [stream for stream in streams if stream[0] is codec.load]
    assert own and all(stream[1] is codec.store and stream[3] == len(codec.buffers) for stream in own)
