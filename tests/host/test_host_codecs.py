"""The storage formats on the host: every 16-bit number, and float32 numbers around every boundary, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlx_gpu.engine.host import codecs, threads
from rlx_gpu.engine.host.build import address_of
from rlx_gpu.engine.host.native import call, int64, pointer
from rlx_gpu.engine.host.programs import MEMORY, Job
from rlx_gpu.kernels.codecs import CODECS
from rlx_gpu.reference.formats import stochastic_bfloat16

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SEED, STEP = 2**45 + 17, 9


def convert(arguments: int, first: int, end: int, memory: int) -> None:
    """One call of a codec, as the programs make it: its address, the stream's words, first, count, and a slot."""
    given = pointer(arguments, int64)
    call(given[0], arguments + 8, given[5], given[6], given[7])


def run(function: int, buffer: torch.Tensor, first: int, values: torch.Tensor, origin: int = 0) -> None:
    """A codec over as many elements as there are values, a piece at a time; the values lie in a slot, as ever."""
    slot = np.zeros(codecs.SLOT, dtype=np.uint8)
    inside = torch.from_numpy(slot).view(values.dtype)
    for start in range(0, len(values), codecs.PIECE):
        part = values[start : start + codecs.PIECE]
        inside[: len(part)] = part
        words = [function, SEED, STEP, origin, buffer.data_ptr(), first + start, len(part), slot.ctypes.data]
        threads.run(Job(address_of(convert), np.array(words, dtype=np.int64), 1), 1)
        part.copy_(inside[: len(part)])


def function(name: str, part: str, double: bool = False) -> int:
    return codecs.codec_function(getattr(CODECS[name], part), double)


def numbers() -> torch.Tensor:
    """Float32 numbers of every exponent, around the halves between neighbours in both formats, and special ones."""
    rng = np.random.default_rng(11)
    bits = rng.integers(0, 2**32, 60_000, dtype=np.uint32)
    every = np.arange(2**16, dtype=np.uint32)
    brain = [(every << 16) + np.uint32(offset) for offset in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    half = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16).float().numpy()
    upper = np.nextafter(half, np.float32(np.inf))
    between = np.concatenate([half, upper, (half + np.roll(half, -1)) / np.float32(2)]).astype(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.996, 65520, 65536, 1e-45, 2.0**-25, 2.0**-24])
    found = [bits.view(np.float32), *(one.view(np.float32) for one in brain), between, special.astype(np.float32)]
    return torch.from_numpy(np.concatenate(found))


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", HALVES)
def test_every_stored_number_is_loaded_exactly(name: str, double: bool) -> None:
    stored = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(HALVES[name])
    found = torch.zeros(2**16, dtype=torch.float64 if double else torch.float32)
    run(function(name, "load", double), stored, 0, found)
    torch.testing.assert_close(found, stored.to(found.dtype), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.signbit()[~found.isnan()], stored.float().signbit()[~found.isnan()])


@pytest.mark.parametrize("name", HALVES)
def test_numbers_are_stored_to_nearest_even(name: str) -> None:
    values = numbers()
    stored = torch.full((len(values) + 5,), 7.0, dtype=HALVES[name])
    run(function(name, "store"), stored, 3, values.clone())
    wanted, found = values.to(HALVES[name]), stored[3:-2]
    nan = values.isnan()
    assert torch.equal(found.isnan(), nan)
    assert torch.equal(found.view(torch.int16)[~nan], wanted.view(torch.int16)[~nan])
    assert (stored[:3] == 7).all() and (stored[-2:] == 7).all()


@pytest.mark.parametrize("origin", [0, 5, 2**35 + 24, 2**31 - 8])
def test_stochastic_rounding_is_that_of_the_reference(origin: int) -> None:
    values = numbers()[:5000]
    stored = torch.zeros(len(values) + 3, dtype=torch.bfloat16)
    run(function("bfloat16_stochastic", "store"), stored, 3, values.clone(), origin)
    index = origin + 3 + np.arange(len(values))
    wanted = stochastic_bfloat16(values.double().numpy(), SEED, STEP, index)
    found = stored[3:].double().numpy()
    np.testing.assert_array_equal(found, wanted)
    assert np.array_equal(np.signbit(found)[~np.isnan(found)], np.signbit(wanted)[~np.isnan(found)])


def test_float32_beside_float64_rules_and_the_other_way_round() -> None:
    values = torch.randn(3000, dtype=torch.float64)
    narrow = torch.zeros(3000)
    run(function("float32", "store", double=True), narrow, 0, values.clone())
    assert torch.equal(narrow, values.float())
    back = torch.zeros(3000, dtype=torch.float64)
    run(function("float32", "load", double=True), narrow, 0, back)
    assert torch.equal(back, narrow.double())
    rounded = torch.zeros(3000)
    run(function("float64", "load"), values, 0, rounded)
    assert torch.equal(rounded, values.float())


def test_a_format_without_a_form_is_named() -> None:
    def load_int3(addresses, offsets, mask, start):
        """Of no format."""

    with pytest.raises(NotImplementedError, match=r"load_int3 has no form for tensors on the CPU; rlx_gpu\.engine"):
        codecs.codec_function(load_int3, False)


def test_what_a_program_works_in_holds_what_it_needs() -> None:
    assert codecs.PIECE * 8 + codecs.PIECE * 2 + 32 <= codecs.SLOT  # values in float64, then a codec's random words
    assert MEMORY % 64 == 0
