"""What the kernels compile to, for every architecture and Triton at hand; no GPU is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compile_runs import ARCHES, PYTHONS, SHARED_BYTES, cases, run_json

from rlx_gpu.compiled.report import COLUMNS, STORAGES
from rlx_gpu.compiled.variants import batch_format, formats
from rlx_gpu.kernels.formats import FORMATS
from rlx_gpu.kernels.reductions import SQUARED_NORM
from rlx_gpu.kernels.spec import FactoredSpec, MatrixSpec
from rlx_gpu.table import TABLE

ELEMENTS = ("float32", "bfloat16", "float16")  # what matrix products take
MAX_REGISTERS = 128  # four blocks of 128 threads on a multiprocessor, enough to keep its memory busy
# What the launches of the factored driver read and write, whatever the optimizer.
FACTORED = {"sums": ("grad",), "norms": ("param", "grad"), "update": ("param", "grad", "param")}
# Bytes a parameter in float32 that do not rest on what rules declare.
KNOWN = {
    "sgd": 12,
    "sgd_momentum": 20,
    "lion": 20,
    "adamw": 28,
    "adamw_amsgrad": 36,
    "sophia": 24,
    "sophia_hessian": 12,
    "lamb/1": 24,
    "lamb/2": 16,
    "mars/1": 8,
    "mars/2": 36,
    "adafactor/sums": 4,
    "adafactor/norms": 8,
    "adafactor/update": 12,
    "squared_norm": 4,
    "gather": 8,
    "soap/apply": 12,
    "muon/apply": 10,
}


def bytes_per_param(dtype):
    """Launch -> bytes a parameter in a storage, of those that move any: the streams they are declared to move."""
    moved = {}
    for algorithm in TABLE.values():
        for spec in algorithm.rules.SPECS:
            if isinstance(spec, FactoredSpec):
                own = formats(spec, algorithm, dtype)
                moved |= {f"{spec.name}/{launch}": size(own, streams) for launch, streams in FACTORED.items()}
            elif isinstance(spec, MatrixSpec):
                batch = batch_format(spec, algorithm)
                moved |= of_passes(spec.prepare.name, spec.prepare, formats(spec.prepare, algorithm, dtype, batch))
                apply = f"{spec.name}/{spec.apply.name}"
                moved |= of_passes(apply, spec.apply, formats(spec.apply, algorithm, dtype, batch))
            else:
                moved |= of_passes(spec.name, spec, formats(spec, algorithm, dtype))
    return moved | of_passes("squared_norm", SQUARED_NORM, formats(SQUARED_NORM, None, dtype))


def of_passes(name, spec, own):
    """The bytes of each pass of a rule whose streams have these formats."""
    names = [name] if len(spec.passes) == 1 else [f"{name}/{number + 1}" for number in range(len(spec.passes))]
    moved = [(own if current.reads is None else current.reads, current.writes) for current in spec.passes]
    return {name: size(own, [*reads, *writes]) for name, (reads, writes) in zip(names, moved, strict=True)}


def size(own, streams):
    """Bytes of one number of each of these streams."""
    buffers = [buffer for stream in streams for buffer in FORMATS[own[stream]]]
    return sum(getattr(torch, buffer.dtype).itemsize / buffer.group for buffer in buffers)


@pytest.fixture(scope="module", params=cases(PYTHONS, ARCHES))
def case(request):
    """An interpreter with some version of Triton, and an architecture."""
    return request.param


@pytest.fixture(scope="module")
def rows(case, cache):
    """The report for one architecture, by an interpreter with some version of Triton."""
    python, arch = case
    return run_json(python, cache, "-m", "rlx_gpu", "kernels", "--arch", arch, "--json")


@pytest.fixture(scope="module", params=cases(PYTHONS))
def controls(request, cache, tmp_path_factory):
    """What became of the kernels that must be refused."""
    script, folder = Path(__file__).with_name("compile_controls.py"), tmp_path_factory.mktemp("controls")
    return run_json(request.param, cache, str(script), str(folder), "sm_90")


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


def test_rows_are_named_once_and_every_optimizer_has_some(rows):
    """That they are those of every launch in every storage is shown with the engine's launches."""
    assert len({(row["name"], row["dtype"]) for row in rows}) == len(rows)
    assert {row["optimizer"] for row in rows} == {None, *TABLE}
    assert {row["dtype"] for row in rows} == {*STORAGES}


def test_no_kernel_spills(rows):
    assert spilling(rows) == []


def test_shared_memory_fits_the_architecture(case, rows):
    _, arch = case
    assert [row for row in rows if row["shared_bytes"] > SHARED_BYTES[arch]] == []


def test_every_stream_is_accessed_128_bits_at_a_time(rows):
    assert narrow(rows) == []


def test_only_kernels_without_streams_have_no_width(rows):
    without = {row["name"].split("/")[0] for row in rows if row["vector_bits"] is None and row["family"] != "rows"}
    assert without == {"adafactor", "finish_sums", "words", "symmetric_product", "split", "householder"}
    assert {row["vector_bits"] for row in rows if row["family"] == "rows"} == {None}


def test_matrix_kernels_serve_all_and_stream_over_nothing(rows):
    matrix = [row for row in rows if row["family"] == "matrix"]
    compiled = {(row["name"].split("/")[0], row["dtype"]) for row in matrix}
    products = {("symmetric_product", dtype) for dtype in ELEMENTS}
    assert compiled == products | {("split", "float32"), ("householder", "float32")}
    assert {(row["optimizer"], row["vector_bits"], row["bytes_per_param"]) for row in matrix} == {(None, None, None)}


def test_registers_stay_below_the_ceiling(rows):
    assert crowded(streaming(rows)) == []


def test_every_stream_moves_once_in_its_own_width(rows):
    """A rule that neither stores nor sums up what depends on a stream says so: `reads` of its pass."""
    expected = {dtype: bytes_per_param(dtype) for dtype in STORAGES}
    found, wanted = {}, {}
    for row in streaming(rows):
        launch = f"{row['name']} {row['dtype']}"
        found[launch], wanted[launch] = row["bytes_per_param"], expected[row["dtype"]].get(row["name"], 0)
    assert found == wanted


def test_the_bytes_that_steps_move_are_known(rows):
    moved = {row["name"]: row["bytes_per_param"] for row in rows if row["dtype"] == "float32"}
    assert {name: moved[name] for name in KNOWN} == KNOWN


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
