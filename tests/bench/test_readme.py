"""The README: its tables are those of the registry and of the recorded rows, and its examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import user_environment
from recorded_rows import ROWS

from rlx_gpu.bench import readme
from rlx_gpu.table import TABLE


def test_readme_tables_follow_from_the_registry_and_the_recorded_rows() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert readme.render(text) == text, "run `rlx-gpu bench plot`"


def test_readme_without_a_section_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizers"):
        readme.render("no sections here")


TRAINED = "--steps 400 --width 128 --layers 3 --context 64 --batch-size 32 --tries 3 --seeds 3"
EXAMPLES = re.findall(r"```python\n(.*?)```", readme.README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"example{i}" for i in range(len(EXAMPLES))])
def test_readme_examples_run(example: str) -> None:
    command = [sys.executable, "-W", "error", "-c", example]
    subprocess.run(command, env=user_environment(), check=True, timeout=120)


def test_readme_sections_are_written_from_the_same_rows(drawn: tuple[Path, Path], monkeypatch) -> None:
    results, plots = drawn
    monkeypatch.setattr(readme, "PLOTS", plots)
    assert readme.elementwise(results).splitlines()[0].startswith("![Time of an optimizer step over the bytes")
    line = next(line for line in readme.elementwise(results).splitlines() if line.startswith("| square-1b | AdamW |"))
    assert line == "| square-1b | AdamW | 7.18 | 98% | torch fused | 1.22 | 3.6 | 97% | torch fused | 1.22 |"
    assert "| square-1b | Sophia | 6.16 | 98% | – | – |" in readme.elementwise(results)
    assert "| SOAP, mean | gpt2-124m | float32 | 8 | – | heavyball | 1.75 |" in readme.matrix(results)
    assert "| newton_schulz | 4 × 4096 × 4096 | bfloat16 | 13.8 | 60% | batched cuBLAS | 1.60 |" in readme.matrix(
        results
    )
    assert "| Lion | 80 | torch foreach | 0.25 |" in readme.cpu(results)
    assert "| `SGD` | ≥ 0.003 | 0.86 (0.83 to 0.90) | 216 (208 to 224) | 4.00 |" in readme.training(results)
    assert "| `KronPSGD` | 0.003 | not reached | not reached |" in readme.training(results)
    for name in ROWS:
        section = readme.SECTIONS[name](results)
        command = f"train {TRAINED}" if name == "train" else name
        assert section.endswith(f"Reproduce: `rlx-gpu bench {command}`.")
        assert "on synthetic, torch 2.13.0, Triton 3.7.1, at commit synthetic." in section
    assert "≥ or ≤: the best learning rate is the highest or the lowest" in readme.training(results)


def test_readme_sections_without_rows_say_so(tmp_path: Path) -> None:
    for name in ROWS:
        assert readme.SECTIONS[name](tmp_path) == (
            f"Nothing is recorded yet: `rlx-gpu bench {name}` measures and records it."
        )


def test_every_optimizer_of_the_readme_has_its_words_and_its_bytes() -> None:
    lines = readme.optimizers().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(TABLE)
    assert [line for line in lines if "?" in line or "|  |" in line] == []
