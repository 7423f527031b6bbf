"""The report's own behaviour: its selection, and what it refuses to read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from compile_runs import ARCHES, environment, one_worker, run_json

from rlx_gpu.compiled.report import architectures, capability, report, run, variants
from rlx_gpu.compiled.sass import Access, Instruction, UnexpectedCode, ir_accesses, machine_accesses, ptx_accesses
from rlx_gpu.compiled.traffic import Block, Traffic, traffic

pytestmark = one_worker()
LINE, TAIL, SCALAR = ("codec.py", 1), ("codec.py", 2), ("driver.py", 3)
BLOCK = Block((1024,), (128,))
ACCESSES = [
    Access("load", (), 64, False, SCALAR),
    Access("load", (1024,), 32, False, LINE),
    Access("load", (128,), 32, True, TAIL),
]
FULL = [Instruction("load", 128, False, LINE)] * 2
CODE = [Instruction("load", 64, False, SCALAR), *FULL, Instruction("load", 32, True, TAIL)]


def test_command_selects_and_needs_no_torch(cache):
    code = (
        "import sys; from rlx_gpu.compiled.report import run\n"
        "status = run('sm_90', ['lion'], ['bfloat16'], True)\n"
        "sys.exit(status or 3 * ('torch' in sys.modules))"
    )
    (row,) = run_json(sys.executable, cache, "-c", code)
    assert (row["name"], row["optimizer"], row["dtype"]) == ("lion", "Lion", "bfloat16")
    assert row["bytes_per_param"] == 10


def test_command_prints_a_table(cache):
    command = [sys.executable, "-m", "rlx_gpu", "kernels", "--optimizer", "sgd", "--dtype", "float32"]
    shown = subprocess.run(command, env=environment(cache), capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "sgd_nesterov" in shown.stdout and "registers" in shown.stdout


@pytest.mark.parametrize("arch", ["90", "sm_9", "sm90", "gfx942", "sm_90; ls"])
def test_an_arch_of_another_form_is_named(arch):
    with pytest.raises(ValueError, match="must look like sm_90"):
        capability(arch)
    with pytest.raises(ValueError, match="must look like sm_90"):
        report(arch)


@pytest.mark.parametrize("arch", ["sm_999", "sm_70", "sm_75"])
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "json"])
def test_an_arch_that_is_not_supported_lists_those_that_are(arch, form, cache):
    command = [sys.executable, "-m", "rlx_gpu", "kernels", "--arch", arch, *form]
    shown = subprocess.run(command, env=environment(cache), capture_output=True, text=True)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith(f"error: there is no supported architecture '{arch}'; choose from sm_80, ")
    assert shown.stderr.count("\n") == 1


def test_the_supported_architectures_are_those_of_the_bundled_compilers():
    known = architectures()
    assert {*ARCHES} <= set(known)
    assert known == sorted(known, key=capability) and capability(known[0]) == 80


@pytest.mark.parametrize("as_json", [True, False])
def test_a_failed_compilation_is_named_and_prints_nothing_else(as_json, cache):
    code = (
        "import sys, triton; from rlx_gpu.compiled import report\n"
        "def fail(*arguments, **options):\n"
        "    print('all of the PTX')\n"
        "    raise ValueError('ptxas says no')\n"
        "triton.compile = fail\n"
        f"sys.exit(report.run('sm_90', ['lion'], ['float32'], {as_json}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], env=environment(cache), capture_output=True, text=True)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "error: while compiling lion float32 for sm_90; ptxas says no\n" in shown.stderr


def test_interpreted_kernels_are_not_compiled(capsys):
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        variants()
    assert run("sm_90", (), (), False) == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err


@pytest.mark.parametrize("choice", [(["adamv"], ()), ((), ["float8"])])
def test_an_unknown_choice_lists_the_known(cache, choice):
    code = f"import sys; from rlx_gpu.compiled.report import run; sys.exit(run('sm_90', *{choice!r}, True))"
    shown = subprocess.run([sys.executable, "-c", code], env=environment(cache), capture_output=True, text=True)
    assert shown.returncode == 2
    assert "there is no" in shown.stderr and ("AdamW" in shown.stderr or "bfloat16_stochastic" in shown.stderr)


def test_traffic_counts_the_full_path():
    assert traffic(ACCESSES, CODE, BLOCK, threads=128) == Traffic(128, 4)


def test_traffic_reports_the_narrowest_access():
    narrow = [Instruction("load", 32, False, LINE)] * 4 + FULL[:1]
    assert traffic(ACCESSES, [*narrow, CODE[0], CODE[-1]], BLOCK, threads=128) == Traffic(32, 4)


def test_traffic_allows_an_unrolled_loop_of_blocks():
    looped = replace(BLOCK, repeats=4)
    assert traffic(ACCESSES, [*CODE, *FULL], looped, threads=128) == Traffic(128, 4)
    with pytest.raises(UnexpectedCode, match="repeated"):
        traffic(ACCESSES, [*CODE, *FULL], BLOCK, threads=128)


@pytest.mark.parametrize(
    ("accesses", "code", "message"),
    [
        (ACCESSES, CODE[1:2] + CODE[3:], "move 128 bits a thread, the IR says 256"),
        (ACCESSES, [Instruction("load", 128, True, LINE)] * 2, "predicated"),
        (ACCESSES, [*CODE, Instruction("store", 32, False, LINE)], "without an access in the IR"),
        (ACCESSES[:2], CODE[:3], "the tail over"),
        ([*ACCESSES, Access("load", (128,), 32, True, LINE)], CODE, "the tail over"),
        ([*ACCESSES, Access("load", (32,), 32, True, LINE)], CODE, "with and without a mask"),
    ],
)
def test_traffic_refuses_what_it_could_misread(accesses, code, message):
    with pytest.raises(UnexpectedCode, match=message):
        traffic(accesses, code, BLOCK, threads=128)


def test_traffic_refuses_a_tail_that_relies_on_alignment():
    wide = [*CODE[:-1], Instruction("load", 128, True, TAIL)]
    with pytest.raises(UnexpectedCode, match="tail access wider than an element"):
        traffic(ACCESSES, wide, BLOCK, 128)


def test_a_kernel_declared_without_streams_must_have_none():
    with pytest.raises(UnexpectedCode, match="without parameter-sized streams"):
        traffic(ACCESSES, CODE, None, threads=128)


def test_ir_reader_follows_locations_and_refuses_other_memory_operations():
    text = (
        "  %v.1 = tt.load %p#0, %m, %c cacheModifier = ca {a = 1} : tensor<8x128x!tt.ptr<bf16>, #blocked> loc(#loc3)\n"
        "    tt.store %p, %v : !tt.ptr<i64> loc(#loc1)\n"
        '#loc1 = loc("driver.py":7:3)\n'
        '#loc2 = loc("values"(#loc1))\n'
        "#loc3 = loc(callsite(#loc2 at #loc9))\n"
    )
    assert ir_accesses(text) == [
        Access("load", (8, 128), 16, True, ("driver.py", 7)),
        Access("store", (), 64, False, ("driver.py", 7)),
    ]
    with pytest.raises(UnexpectedCode, match="atomic"):
        ir_accesses("  %1 = tt.atomic_rmw fadd, %p, %v : (tensor<8x!tt.ptr<f32>>) loc(#loc1)\n" + text)


PTX = """\t.loc\t1 20 3
\t// begin inline asm
\t.loc\t1 30 3
\tmov.u32 %r1, 0x0;
\t.loc\t1 31 3
\t@%p1 ld.global.b32 { %r1 }, [ %rd1 + 0 ];
\t// end inline asm
\tst.global.b32 [ %rd1 + 0 ], { %r1 };
\tld.param.b64 %rd2, [kernel_param_0];
\t.file\t1 "driver.py"
"""


def test_ptx_reader_takes_the_first_line_of_inline_assembly():
    assert ptx_accesses(PTX) == {6: ("load", ("driver.py", 30)), 8: ("store", ("driver.py", 30))}
    with pytest.raises(UnexpectedCode, match="red"):
        ptx_accesses("\tred.global.add.f32 [%rd1], %f1;\n")


SASS = """\t//## File ".nv_debug_ptx_txt", line 6
        /*0010*/              @!P0 LDG.E.128 R2, desc[UR6][R4.64] ;
        /*0020*/                   LDL R2, [R1] ;
\t//## File ".nv_debug_ptx_txt", line 8
        /*0030*/                   STG.E.U16 desc[UR6][R4.64], R2 ;
"""


def test_machine_code_reader_joins_instructions_to_source_lines():
    line = ("driver.py", 30)
    assert machine_accesses(SASS, PTX) == (
        [Instruction("load", 128, True, line), Instruction("store", 16, False, line)],
        1,
    )


@pytest.mark.parametrize("code", ["LD.E R2, [R4.64]", "ATOMG.E.ADD R2, [R4.64], R5", "STG.E [R4.64], R2", "NOTHING"])
def test_machine_code_reader_refuses_other_memory_instructions(code):
    text = f'\t//## File ".nv_debug_ptx_txt", line 6\n        /*0010*/                   {code} ;\n'
    with pytest.raises(UnexpectedCode):
        machine_accesses(text if code != "NOTHING" else "", PTX)
