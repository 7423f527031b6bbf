"""What the kernels compile to, for every architecture and Triton at hand; no GPU is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from compile_runs import ARCHES, PYTHONS, run_json

from rlx_gpu.compile_report import COLUMNS, STORAGES
from rlx_gpu.kernels.spec import RuleSpec
from rlx_gpu.table import TABLE

ELEMENTS = ("float32", "bfloat16", "float16")  # what matrix products take
MAX_REGISTERS = 128  # four blocks of 128 threads on a multiprocessor, enough to keep its memory busy
# Bytes a parameter in float32 of the launches that pass over fewer streams than all: which, no declaration says.
FEWER_BYTES = {
    "sophia_hessian": 12,
    "lamb/2": 16,
    "mars/1": 8,
    "adafactor/sums": 4,
    "adafactor/moments": 0,
    "adafactor/norms": 8,
    "adafactor/update": 12,
    "muon_momentum/1": 12,
    "muon_momentum/2": 8,
    "muon_nesterov/1": 12,
    "muon_nesterov/2": 12,
    "soap_rotated": 24,
    "squared_norm": 4,
    "finish_sums/1": 0,
    "finish_sums/2": 0,
    "guard": 0,
}


def bytes_per_param():
    """Launch -> bytes a parameter in float32: every stream read once, and those that the pass declares stored."""
    specs = [spec for algorithm in TABLE.values() for spec in algorithm.rules.SPECS if isinstance(spec, RuleSpec)]
    streams = {
        spec.name if len(spec.passes) == 1 else f"{spec.name}/{number}": 2 + len(spec.slots) + len(current.writes)
        for spec in specs
        for number, current in enumerate(spec.passes, start=1)
    }
    return {name: 4 * count for name, count in streams.items()} | FEWER_BYTES


def label(python: str) -> str:
    """Names an interpreter by its virtual environment."""
    return Path(python).parents[1].name


@pytest.fixture(scope="module", params=PYTHONS, ids=label)
def python(request):
    """An interpreter with some version of Triton."""
    return request.param


@pytest.fixture(scope="module", params=ARCHES)
def rows(request, python, tmp_path_factory):
    """The report for one architecture."""
    cache = tmp_path_factory.mktemp("cache")
    return run_json(python, cache, "-m", "rlx_gpu", "kernels", "--arch", request.param, "--json")


@pytest.fixture(scope="module")
def controls(python, tmp_path_factory):
    """What became of the kernels that must be refused."""
    folder = tmp_path_factory.mktemp("controls")
    return run_json(python, folder, str(Path(__file__).with_name("compile_controls.py")), str(folder), "sm_90")


def spilling(rows):
    """Rows with stack or local memory."""
    return [row for row in rows if row["spill_bytes"] != 0]


def streaming(rows):
    """Rows of kernels that pass over tensors, as all but the matrix kernels do."""
    return [row for row in rows if row["family"] != "matrix"]


def narrow(rows):
    """Rows with an access to a parameter-sized stream that is not 128 bits wide."""
    return [row for row in rows if row["vector_bits"] != 128 and row["bytes_per_param"]]


def crowded(rows):
    """Rows that take too many registers."""
    return [row for row in rows if row["registers"] > MAX_REGISTERS]


def test_every_row_says_everything(rows):
    assert all(tuple(row) == COLUMNS for row in rows)


def test_every_algorithm_is_compiled_in_every_storage(rows):
    compiled = {(row["optimizer"], row["dtype"]) for row in rows if row["optimizer"]}
    own = [name for name, algorithm in TABLE.items() if algorithm.rules.SPECS]
    assert compiled == {(name, dtype) for name in own for dtype in STORAGES}
    assert len({(row["name"], row["dtype"]) for row in rows}) == len(rows)


def test_no_kernel_spills(rows):
    assert spilling(rows) == []


def test_every_stream_is_accessed_128_bits_at_a_time(rows):
    assert narrow(rows) == []


def test_only_kernels_without_streams_have_no_width(rows):
    without = {row["name"] for row in streaming(rows) if row["vector_bits"] is None}
    assert without == {name for name, moved in bytes_per_param().items() if not moved}


def test_matrix_kernels_serve_all_and_stream_over_nothing(rows):
    matrix = [row for row in rows if row["family"] == "matrix"]
    compiled = {(row["name"].split("/")[0], row["dtype"]) for row in matrix}
    products = {("symmetric_product", dtype) for dtype in ELEMENTS}
    assert compiled == products | {("split", "float32"), ("householder", "float32")}
    assert {(row["optimizer"], row["vector_bits"], row["bytes_per_param"]) for row in matrix} == {(None, None, None)}


def test_registers_stay_below_the_ceiling(rows):
    assert crowded(streaming(rows)) == []


def test_every_stream_moves_once_in_its_own_width(rows):
    expected = bytes_per_param()
    moved = {row["name"]: row["bytes_per_param"] for row in streaming(rows) if row["dtype"] == "float32"}
    assert moved == expected
    for row in streaming(rows):
        if row["dtype"] in ("bfloat16", "bfloat16_stochastic"):
            assert row["bytes_per_param"] == expected[row["name"]] / 2, row


def test_checks_pass_a_good_kernel(controls):
    plain = controls["plain"]
    assert not spilling([plain]) and not narrow([plain]) and not crowded([plain])
    assert plain["bytes_per_param"] == 12


def test_checks_refuse_a_stream_without_the_alignment_hint(controls):
    assert narrow([controls["unhinted"]]) and controls["unhinted"]["vector_bits"] == 32


def test_checks_refuse_a_rule_that_keeps_too_much_alive(controls):
    assert spilling([controls["greedy"]])


def test_checks_refuse_a_masked_full_block_path(controls):
    assert "the full-block path streams over" in controls["masked"]["error"]


def test_rules_of_one_name_do_not_share_a_cached_kernel(controls):
    assert "arith.subf" in controls["minus"] and "arith.subf" not in controls["plus"]
