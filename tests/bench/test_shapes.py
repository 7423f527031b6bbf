"""The models' shapes: as many tensors and elements as the checkpoints they are named after."""

from __future__ import annotations

import pytest

from rlx_gpu.bench.shapes import SHAPES, count, llama_8b, matrices, olmoe


@pytest.mark.parametrize(
    ("model", "tensors", "elements"),
    [
        ("gpt2-124m", 148, 124_439_808),
        ("llama-1b", 146, 1_235_814_400),
        ("llama-8b-shard", 291, 8_030_261_248 // 8),
        ("moe", 531, 1_282_017_280),
        ("vit", 392, 304_326_632),
        ("many-small", 5000, 20_480_000),
        ("square-1b", 64, 2**30),
    ],
)
def test_shapes_have_the_checkpoints_tensors_and_elements(model: str, tensors: int, elements: int) -> None:
    assert (len(SHAPES[model]()), count(SHAPES[model]())) == (tensors, elements)
    hidden = matrices(model)
    assert hidden and all(len(shape) == 2 for shape in hidden)
    assert not any(shape in hidden for shape in SHAPES[model]() if max(shape) > 20_000)


def test_shares_of_a_model_come_from_the_whole_one() -> None:
    assert count(llama_8b()) == 8_030_261_248
    assert count(olmoe()) == 6_919_161_856
    assert set(SHAPES) == {"gpt2-124m", "llama-1b", "llama-8b-shard", "moe", "vit", "many-small", "square-1b"}
    assert len(matrices("gpt2-124m")) == 48
    assert len(matrices("llama-1b")) == 16 * 7
    assert len(matrices("moe")) == 16 * (4 + 1 + 3 * 8)
