"""The driver of CPU tensors: every kernel of the engine in a form for the host, under the same tables and arguments.

    rules       the rules of `rlx_gpu.kernels`, as they are, as Numba functions
    loops       loops around them, generated
    codecs, halves      the storage formats; numbers of 16 bits, which loops convert as they go
    elementwise, rows, factored, reductions, words      the kernels' programs, for the modules of `rlx_gpu.kernels` so
                named
    programs    what these have in common
    build       compilation, kept on disk
    threads     who runs them
    native      memory by its address

Rules and formats are compiled apart but for those of 16 bits, and the programs call them: a rule costs a fraction of a
second once, and once more for 16 bits. Numba is imported when a tensor on the CPU is first stepped.
"""

from __future__ import annotations

from typing import Any

from . import elementwise, factored, reductions, rows, words
from .threads import compile_loops, run, thread_count

__all__ = ["compile_for", "launch", "thread_count"]
FORMS = {
    form.__name__: form
    for form in (
        rows.rows_kernel,
        elementwise.fused_step_kernel,
        factored.factored_sums_kernel,
        factored.factored_moments_kernel,
        factored.factored_step_kernel,
        reductions.finish_sums_kernel,
        words.words_kernel,
    )
}


def launch(kernel: str, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Runs the host's form of a kernel, to its end."""
    run(FORMS[kernel](*arguments, **constants), programs)


def compile_for(kernel: str, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Compiles all that such a launch needs."""
    FORMS[kernel](*arguments, **constants)
    compile_loops()
