"""What a hyperparameter refuses, by its declaration alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlx_gpu.reference.hyper import Hyper

NO_NUMBERS = ("0.1", True, 1j, [0.1], np.ones(1))


def refused_values(hyper: Hyper) -> list[tuple[Any, Any]]:
    """Values that a declaration excludes, each with the part of it that the message has to quote."""
    values = [(value, value) for value in _of_its_kind(hyper)]
    if hyper.kind == "floats":
        for place in range(len(hyper.default)):
            before, after = hyper.default[:place], hyper.default[place + 1 :]
            values += [((*before, number, *after), number) for number in (*_outside(hyper), "0.1", True)]
    if hyper.kind == "sizes":
        values += [((3, number), number) for number in (int(_ends(hyper)[0]) - 1, 1.5, True)]
    if hyper.kind == "coefficients":
        values += [([(1.0, 2.0, 3.0), (1.0, number, 3.0)], number) for number in (float("nan"), float("inf"), "2")]
        values += [([(1.0, 2.0)], (1.0, 2.0))]
    return values if hyper.optional else [*values, (None, None)]


def _of_its_kind(hyper: Hyper) -> list[Any]:
    """Values that are refused as a whole."""
    if hyper.kind == "float":
        return [*_outside(hyper), *NO_NUMBERS]
    if hyper.kind in ("int", "steps"):
        inside = int(_ends(hyper)[0])
        whole = [int(number) for number in _outside(hyper) if np.isfinite(number)]
        return [*whole, float(inside), inside + 0.5, float("nan"), *NO_NUMBERS]
    if hyper.kind == "floats":
        return [0.9, hyper.default[1:], (*hyper.default, hyper.default[-1]), "ab"]
    no_names = [0.5, 1, "nothing", ()]
    return no_names if hyper.kind in ("choice", "coefficients", "sizes") else [*no_names, "True", np.ones(1)]


def _ends(hyper: Hyper) -> tuple[float, float]:
    """Both ends of the interval."""
    low, high = (float(end) for end in hyper.interval[1:-1].split(","))
    return low, high


def _outside(hyper: Hyper) -> list[float]:
    """Numbers beyond both ends of the interval, the ends that it leaves out, and NaN."""
    low, high = _ends(hyper)
    beyond = [low - 1.0, high + 1.0]
    ends = [low] * (hyper.interval[0] == "(") + [high] * (hyper.interval[-1] == ")")
    return [*dict.fromkeys([*beyond, *ends]), float("nan")]
