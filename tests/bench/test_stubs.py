"""The type stubs are those of the registry, and there are no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlx_gpu.bench import stubs
from rlx_gpu.reference.hyper import Hyper

PACKAGE = Path(__file__).parents[2] / "rlx_gpu"


@pytest.mark.parametrize("face", stubs.FACES)
def test_stubs_follow_from_the_registry(face: str) -> None:
    written = stubs.path(face).read_text(encoding="utf-8")
    assert written == stubs.render(face), "run `rlx-gpu bench plot`"


def test_a_stub_lies_beside_its_module_and_nothing_else_has_one() -> None:
    assert {stubs.path(face) for face in stubs.FACES} == set(PACKAGE.rglob("*.pyi"))


@pytest.mark.parametrize(
    ("hyper", "written"),
    [
        (Hyper("x"), "float"),
        (Hyper("x", optional=True), "float | None"),
        (Hyper("x", (0.1, 0.2, 0.3), kind="floats"), "tuple[float, float, float]"),
        (Hyper("x", kind="bool"), "bool"),
        (Hyper("x", kind="int"), "int"),
        (Hyper("x", kind="choice", choices=("a", "b")), 'Literal["a", "b"]'),
        (Hyper("x", kind="sizes", optional=True), "Sequence[int] | None"),
        (Hyper("x", kind="coefficients", choices=("a",)), 'Literal["a"] | Sequence[Triple]'),
    ],
    ids=lambda value: value.kind if isinstance(value, Hyper) else "",
)
def test_a_hyperparameter_has_the_type_of_its_kind(hyper: Hyper, written: str) -> None:
    assert stubs.hyper_type(hyper) == written
