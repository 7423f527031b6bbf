"""Writes down what `rlx-gpu kernels` reports for sm_90 and float32. `python -m rlx_gpu.bench.kernels`"""

from __future__ import annotations

import json

import triton

from ..compiled.report import report
from .record import RESULTS

ARCH = "sm_90"


def main() -> None:
    """Replace the report: it follows from the sources, and is no measurement."""
    rows = [{"arch": ARCH, "triton": triton.__version__, **row} for row in report(ARCH, dtypes=["float32"])]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (RESULTS / "kernels.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
