"""Compiles the matrix kernels through their launcher, with the launch itself left out; prints JSON.

As `engine_trial`: CPU tensors, a stand-in driver that names sm_90, and a `warmup` in place of every launch.
"""

from __future__ import annotations

import json
import re

import torch
from engine_trial import compile_only, compiled, stand_in

from rlx_gpu.compiled import sass
from rlx_gpu.compiled.report import compile_variant, cubin_file, variants
from rlx_gpu.matrix import products
from rlx_gpu.matrix.products import householder_, matmul, symmetric_product


def run(batch: int, rows: int, inner: int, alpha: float, beta: float) -> None:
    """Every kernel, on matrices of one shape."""
    x = torch.zeros(batch, rows, inner)
    c = torch.zeros(batch, rows, rows)
    symmetric_product(x, alpha=alpha, beta=beta, c=c)
    symmetric_product(x, torch.zeros_like(x), alpha=alpha, beta=beta, c=c)
    matmul(x, torch.zeros(batch, inner, rows))
    householder_(c, torch.zeros(batch, dtype=torch.int32))


def opcodes(name: str, dtype: str, arch: str, optimizer: str | None = None) -> list[str]:
    """What a kernel of the report executes, without what is repeated."""
    chosen = variants([optimizer] if optimizer else [], [dtype], int(arch.removeprefix("sm_")))
    (variant,) = [one for one in chosen if (one.name, one.dtype) == (name, dtype)]
    with cubin_file(compile_variant(variant, arch)) as cubin:
        code = sass.disassemble(cubin)
    return sorted(set(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)))


def main() -> None:
    """Print the variants that shapes and scalars cost, and the instructions of a few kernels."""
    stand_in(compile_only)
    products.SPLIT_SIDE = products.SPLIT_WORK = 0
    counts = []
    # Alike: multiples of 8, not of 64. Then 1 matrix, of 16 rows; other scalars; 1 program; sizes beyond a tile.
    for case in ((3, 24, 40), (1, 16, 8), (2, 1000, 24), (1, 8, 1000)):
        for scalars in ((0.5, 2.0), (1.0, 0.0), (0.0, 1.0)):
            run(*case, *scalars)
        counts.append(compiled())
    for case in ((2, 1, 1), (1, 17, 1), (3, 1, 33), (2, 33, 47)):  # of odd sizes, 1 among them
        run(*case, 1.0, 1.0)
        counts.append(compiled())
    instructions = {
        "bfloat16": opcodes("symmetric_product/128_cols", "bfloat16", "sm_90"),
        "float16": opcodes("symmetric_product/128_rows", "float16", "sm_90"),
        "float32": opcodes("symmetric_product/128_cols", "float32", "sm_90"),
        "with_c": opcodes("symmetric_product/128_rows_c", "bfloat16", "sm_90"),
        "split": opcodes("split", "float32", "sm_90"),
        "unaligned": opcodes("symmetric_product/64_none", "bfloat16", "sm_90"),
        "sm_80": opcodes("symmetric_product/128_cols", "bfloat16", "sm_80"),
        "sm_120": opcodes("symmetric_product/128_cols", "bfloat16", "sm_120"),
        "householder": opcodes("householder", "float32", "sm_90"),
    }
    print(json.dumps({"counts": counts, "instructions": instructions}))


if __name__ == "__main__":
    main()
