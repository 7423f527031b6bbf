"""Kernels that the compile checks must refuse, and two rules that Triton's disk cache must not confuse; prints JSON.

A script, run in its own process: the other tests interpret kernels, which these would then be.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import triton
import triton.language as tl

from rlx_gpu.compiled.report import Variant, compile_variant, measure
from rlx_gpu.compiled.traffic import Block
from rlx_gpu.compiled.variants import TABLES
from rlx_gpu.kernels import elementwise
from rlx_gpu.kernels.codecs import FLOAT32, Codec
from rlx_gpu.kernels.rules import sgd
from rlx_gpu.kernels.spec import Pass, RuleSpec


@triton.jit
def load_unhinted(addresses, offsets, mask, start):
    """float32 without the alignment hint of the full-block path."""
    pointer = addresses[0].to(tl.pointer_type(tl.float32)) + offsets
    if mask is None:
        return tl.load(pointer)
    else:
        return tl.load(pointer, mask=mask, other=0.0)


@triton.jit
def load_masked(addresses, offsets, mask, start):
    """float32 with a mask in the full-block path as well."""
    pointer = addresses[0].to(tl.pointer_type(tl.float32)) + offsets
    if mask is None:
        return tl.load(pointer, mask=offsets < 1 << 40, other=0.0)
    else:
        return tl.load(pointer, mask=mask, other=0.0)


@triton.jit
def greedy_rule(param, grad, state, hyper):
    """Keeps 300 values of an element alive: each is needed again after the last is known."""
    values = (param,)
    for i in tl.static_range(300):
        values = values + (values[i] * grad + i,)  # noqa: RUF005  (Triton has no starred expressions)
    total = values[300]
    for i in tl.static_range(300):
        total = total * values[i] + param
    return total, state


UNHINTED = Codec("unhinted", FLOAT32.buffers, load_unhinted, FLOAT32.store)
MASKED = Codec("masked", FLOAT32.buffers, load_masked, FLOAT32.store)
GREEDY = RuleSpec("greedy", (), (Pass(greedy_rule, ("param",)),), sgd.ROW)


def variant(spec: RuleSpec, grad: Codec) -> Variant:
    """A rule without state, its gradient stored by a codec."""
    constants = elementwise.constants(spec, 0, (FLOAT32, grad))
    block = Block((elementwise.BLOCK,), (elementwise.TAIL_BLOCK,))
    return Variant(spec.name, "elementwise", None, grad.name, elementwise.fused_step_kernel, constants, block, TABLES)


def rule_from(path: Path) -> RuleSpec:
    """The rule of a file; every file becomes a module of the same name."""
    description = importlib.util.spec_from_file_location("same_module", path)
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    return RuleSpec("same", (), (Pass(module.same_rule, ("param",)),), sgd.ROW)


RULE_FILE = """
import triton

@triton.jit
def same_rule(param, grad, state, hyper):
    return param {} grad, state
"""


def main(folder: Path, arch: str) -> None:
    """Measures every control and prints what came of it."""
    result = {}
    for name, spec, grad in (
        ("plain", sgd.PLAIN, FLOAT32),
        ("unhinted", sgd.PLAIN, UNHINTED),
        ("masked", sgd.PLAIN, MASKED),
        ("greedy", GREEDY, FLOAT32),
    ):
        try:
            control = variant(spec, grad)
            result[name] = measure(control, compile_variant(control, arch))
        except RuntimeError as error:
            result[name] = {"error": f"{type(error).__name__}: {error}"}
    for sign, name in (("-", "minus"), ("+", "plus")):
        path = folder / f"{name}.py"
        path.write_text(RULE_FILE.format(sign))
        result[name] = compile_variant(variant(rule_from(path), FLOAT32), arch).asm["ttir"]
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
