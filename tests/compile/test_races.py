"""Threads of a block must not load what another may have stored already: see `thread_access`."""

from __future__ import annotations

from pathlib import Path

import pytest
from compile_runs import ARCHES, PYTHONS, cases, run_json
from thread_access import IN_TABLES, Access, accesses, holders, repeated

from rlx_gpu.compiled.sass import UnexpectedCode

TRIAL = Path(__file__).with_name("race_trial.py")
# A barrier follows the loads of a column's head, and vⱼ lies in another column than those that are being reflected.
ALLOWED = ["householder_kernel matrices_ptr [16]", "householder_kernel matrices_ptr []"]


@pytest.fixture(scope="module", params=cases(PYTHONS, ARCHES))
def trial(request, cache):
    """What is found in the kernels for one architecture, compiled with some version of Triton."""
    python, arch = request.param
    return run_json(python, cache, str(TRIAL), arch)


def test_no_thread_loads_what_another_stores(trial):
    assert trial["found"] == ALLOWED


def test_a_block_of_half_the_threads_is_refused(trial):
    """Half of the warps load the state of which the other half stores the next value."""
    assert trial["control"] == [f"factored_moments_kernel {IN_TABLES} [64]"]


BLOCKED = "#ttg.blocked<{{sizePerThread = {}, threadsPerWarp = {}, warpsPerCTA = {}, order = {}}}>"
ROW = BLOCKED.format([4], [32], [4], [0])
TILE = BLOCKED.format([1, 1], [1, 32], [2, 2], [1, 0])


@pytest.mark.parametrize(
    ("layout", "shape", "expected"),
    [
        (ROW, (1024,), 1),
        (ROW, (512,), 1),
        (ROW, (128,), 4),
        (ROW, (1,), 128),
        (TILE, (2, 64), 1),
        (TILE, (1, 64), 2),
        (TILE, (32, 16), 4),
        (f"#ttg.slice<{{dim = 0, parent = {TILE}}}>", (64,), 2),
        (f"#ttg.slice<{{dim = 1, parent = {TILE}}}>", (64,), 64),
    ],
)
def test_holders_of_an_element_are_counted(layout, shape, expected):
    assert holders(layout, shape) == expected


def test_a_layout_that_is_not_known_is_refused():
    with pytest.raises(UnexpectedCode, match="mma"):
        holders("#ttg.nvidia_mma<{versionMajor = 2}>", (16, 16))


def test_only_loads_from_memory_that_is_stored_to_matter():
    a, b = frozenset({"a_ptr"}), frozenset({"b_ptr"})
    loads = [Access("load", a, (64,), True), Access("load", b, (), True), Access("load", b, (128,), False)]
    assert repeated([*loads, Access("store", b, (128,), False)]) == {("b_ptr", ())}
    assert repeated(loads) == set()


IR = f"""#blocked = {ROW}
  tt.func public @kernel(%table_ptr: !tt.ptr<i64> loc("a"(#loc)), %work_ptr: !tt.ptr<f32> loc("b"(#loc)), %n: i32) {{
    %1 = tt.load %table_ptr : !tt.ptr<i64> loc(#loc1)
    %2 = tt.ptr_to_int %work_ptr : !tt.ptr<f32> -> i64 loc(#loc1)
    %3 = arith.addi %1, %2 : i64 loc(#loc1)
    %4 = tt.int_to_ptr %3 : i64 -> !tt.ptr<f32> loc(#loc1)
    %5 = tt.splat %4 : !tt.ptr<f32> -> tensor<128x!tt.ptr<f32>, #blocked> loc(#loc1)
    %6 = scf.for %i = %c0 to %n step %c1 iter_args(%7 = %5) -> (tensor<128x!tt.ptr<f32>, #blocked>)  : i32 {{
      %8 = tt.load %7, %mask, %other : tensor<128x!tt.ptr<f32>, #blocked> loc(#loc1)
      tt.store %7, %8, %mask : tensor<128x!tt.ptr<f32>, #blocked> loc(#loc1)
"""


def test_memory_is_followed_through_tables_and_loops():
    table, work = frozenset({"table_ptr"}), frozenset({"work_ptr", IN_TABLES})
    assert accesses(IR) == [
        Access("load", table, (), True),
        Access("load", work, (128,), True),
        Access("store", work, (128,), True),
    ]


@pytest.mark.parametrize("line", ["%9 = tt.atomic_rmw fadd, %7, %8 : f32", "%9 = tt.load %8 : !tt.ptr<f32>"])
def test_other_memory_operations_and_addresses_are_refused(line):
    with pytest.raises(UnexpectedCode, match="does not know"):
        accesses(f"{IR}      {line} loc(#loc1)\n")
