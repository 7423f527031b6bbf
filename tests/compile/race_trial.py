"""Which kernels of the report repeat loads from memory that they store to, and one that does; prints JSON.

A script, run in its own process: the other tests interpret kernels, which these would then be.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from thread_access import accesses, repeated

from rlx_gpu.compiled.report import Variant, capability, compile_variant, variants


def found(variant: Variant, arch: str) -> list[str]:
    """The loads of a kernel that are repeated, each in a line."""
    loads = repeated(accesses(compile_variant(variant, arch).asm["ttgir"]))
    return [f"{variant.kernel.__name__} {memory} {list(shape)}" for memory, shape in sorted(loads)]


def main(arch: str) -> None:
    """Print the findings in all kernels, and those in moments of blocks half as large as a program has threads."""
    chosen = variants((), (), capability(arch))
    (moments,) = [one for one in chosen if (one.name, one.dtype) == ("adafactor/moments", "float32")]
    half = replace(moments, constants={**moments.constants, "BLOCK": 64})
    everywhere = sorted({line for variant in chosen for line in found(variant, arch)})
    print(json.dumps({"found": everywhere, "control": found(half, arch)}))


if __name__ == "__main__":
    main(sys.argv[1])
