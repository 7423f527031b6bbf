"""Storage formats: rounding against hardware formats, random bits against Triton's, stochastic rounding in law."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

from rlx_gpu.reference.formats import FORMATS, philox, round_to, stochastic_bfloat16

reproducible = settings(deadline=None, derandomize=True, max_examples=60)
ANY = arrays(np.float64, 16, elements=st.floats(width=64))
SINGLE = arrays(np.float64, 16, elements=st.floats(width=32, allow_nan=False))
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e300, -1e300, 5e-324, 2.0**-133, 2.0**-134, 65519.9, 65520.0])
LARGEST_BFLOAT16 = (2 - 2**-7) * 2.0**127


def same(x, y):
    """Equal to the bit, the sign of zero and NaN included."""
    assert_array_equal(x, y)
    assert_array_equal(np.signbit(x[~np.isnan(x)]), np.signbit(y[~np.isnan(y)]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@given(x=ANY)
@reproducible
def test_round_to_is_the_cast(dtype, x):
    with np.errstate(over="ignore", under="ignore"):
        for values in (x, x * 1e-300, SPECIAL):
            same(round_to(values, dtype), values.astype(dtype).astype(np.float64))


@given(x=SINGLE)
@reproducible
def test_round_to_bfloat16_is_torchs_cast_of_float32(x):
    torch = pytest.importorskip("torch")
    for values in (x, SPECIAL):
        with np.errstate(over="ignore"):
            single = values.astype(np.float32)
        same(round_to(single, "bfloat16"), torch.from_numpy(single).bfloat16().double().numpy())


def test_round_to_bfloat16_rounds_once():
    """Through float32 this value would land on the tie of two neighbours, and then on the even, lower one."""
    value = 1 + 2.0**-8 + 2.0**-40
    assert round_to(value, "bfloat16") == 1 + 2.0**-7
    assert round_to(np.float64(np.float32(value)), "bfloat16") == 1.0


@pytest.mark.parametrize("dtype", FORMATS)
@given(x=ANY)
@reproducible
def test_round_to_is_idempotent_and_monotone(dtype, x):
    rounded = round_to(x, dtype)
    same(round_to(rounded, dtype), rounded)
    ordered = round_to(np.sort(x[~np.isnan(x)]), dtype)
    assert np.all(ordered[1:] >= ordered[:-1])


def test_round_to_limits():
    half_spacing = 2.0**119
    assert round_to(LARGEST_BFLOAT16 + half_spacing * 0.99, "bfloat16") == LARGEST_BFLOAT16
    assert round_to(LARGEST_BFLOAT16 + half_spacing, "bfloat16") == np.inf
    assert round_to(np.float64(np.pi), "float64") == np.pi
    with pytest.raises(ValueError, match="'int8'"):
        round_to(1.0, "int8")


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [
        ([0, 0, 0, 0], 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, 0xFFFFFFFFFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(counter, seed, words):
    """The vectors that the authors' Random123 ships for philox4x32 with 10 rounds."""
    assert " ".join(f"{word:08x}" for word in map(int, philox(seed, *counter))) == words


TRITON_PHILOX = """
import sys
import torch, triton, triton.language as tl

@triton.jit
def philox_kernel(out_ptr, index_ptr, seed, step, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    index = tl.load(index_ptr + lane)
    low, high = index.to(tl.uint32), (index >> 32).to(tl.uint32)
    words = tl.philox(seed, low, high, low * 0 + step, low * 0, 7)
    for i in tl.static_range(4):
        tl.store(out_ptr + i * BLOCK + lane, words[i].to(tl.int32, bitcast=True))

index = torch.tensor([0, 1, 2, 3, 2**31 - 1, 2**31, 2**32 - 1, 2**40 + 7], dtype=torch.int64)
for seed, step in ((0, 1), (1, 2), (2**40 + 12345, 2**31 - 1), (2**63 - 1, 17)):
    out = torch.empty(4, 8, dtype=torch.int32)
    philox_kernel[(1,)](out, index, seed, step, BLOCK=8)
    print(seed, step, *out.flatten().tolist())
"""


def test_philox_is_tritons(tmp_path):
    """Bit for bit, on Triton's interpreter; a file, as Triton reads a kernel's source."""
    pytest.importorskip("triton")
    pytest.importorskip("torch")
    script = tmp_path / "philox.py"
    script.write_text(TRITON_PHILOX)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    assert run.returncode == 0, run.stderr
    index = np.array([0, 1, 2, 3, 2**31 - 1, 2**31, 2**32 - 1, 2**40 + 7])
    lines = [[int(word) for word in line.split()] for line in run.stdout.splitlines()]
    assert len(lines) == 4
    for seed, step, *words in lines:
        ours = np.stack(philox(seed, index, index >> 32, step, 0, rounds=7))
        assert_array_equal(ours, np.array(words, np.int32).view(np.uint32).reshape(4, 8))


@given(x=SINGLE, seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**32 - 1))
@reproducible
def test_stochastic_rounding_gives_one_of_the_two_neighbours(x, seed, step):
    rounded = stochastic_bfloat16(x, seed, step, np.arange(16))
    bits = x.astype(np.float32).view(np.uint32)
    toward_zero = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    away = ((bits & np.uint32(0xFFFF0000)) + np.uint32(0x10000) * np.isfinite(x)).astype(np.uint32).view(np.float32)
    assert np.all((rounded == toward_zero) | (rounded == away))
    exact = round_to(x, "bfloat16") == x
    same(rounded[exact], x[exact])
    inside = np.abs(x) <= LARGEST_BFLOAT16
    assert np.all(np.isfinite(rounded[inside]))


def test_stochastic_rounding_passes_nonfinite_values_through():
    """A NaN whose payload the random bits could carry into infinity's or zero's pattern stays a NaN."""
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], np.uint32).view(np.float32)
    for step in range(50):
        with np.errstate(invalid="ignore"):  # two of them are signalling
            assert np.isnan(stochastic_bfloat16(nans, 3, step, np.arange(4))).all()
        assert_array_equal(
            stochastic_bfloat16([np.inf, -np.inf, 1e300], 3, step, np.arange(3)), [np.inf, -np.inf, np.inf]
        )


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_stochastic_rounding_is_unbiased(fraction):
    size = 100_000
    spacing = 2.0**-7
    rounded = stochastic_bfloat16(np.full(size, -(1 + fraction * spacing)), 11, 5, np.arange(size))
    # five standard deviations of the mean of `size` coin tosses
    tolerance = 5 * spacing * np.sqrt(fraction * (1 - fraction) / size)
    assert abs(-rounded.mean() - (1 + fraction * spacing)) < tolerance


def test_stochastic_rounding_is_keyed_by_seed_step_and_index():
    x = np.random.default_rng(0).normal(size=1000)
    index = np.arange(1000)
    rounded = stochastic_bfloat16(x, 1, 1, index)
    same(stochastic_bfloat16(x, 1, 1, index), rounded)
    parts = [stochastic_bfloat16(x[part], 1, 1, index[part]) for part in (slice(0, 300), slice(300, None))]
    same(np.concatenate(parts), rounded)
    order = np.random.default_rng(1).permutation(1000)
    same(stochastic_bfloat16(x[order], 1, 1, index[order]), rounded[order])
    for other in ((2, 1, index), (1 << 32 | 1, 1, index), (1, 2, index), (1, 1, index + 1), (1, 1, index + (1 << 32))):
        assert 0.2 < np.mean(stochastic_bfloat16(x, *other) != rounded) < 0.5


def test_stochastic_rounding_of_any_shape():
    assert stochastic_bfloat16(1.0, 0, 1, 0).shape == ()
    assert stochastic_bfloat16(np.ones((0, 3)), 0, 1, np.zeros((0, 3), np.int64)).shape == (0, 3)
