"""The benches' own behaviour, and the README: its tables are current and its examples run."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys

import pytest

from rlx_gpu.bench import host, readme, record
from rlx_gpu.bench.shapes import SHAPES, gpt2_124m


def test_readme_tables_follow_from_the_registry_and_the_recorded_rows() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert readme.render(text) == text, "run `python -m rlx_gpu.bench.readme`"


def test_readme_without_a_section_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizers"):
        readme.render("no sections here")


EXAMPLES = re.findall(r"```python\n(.*?)```", readme.README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"example{i}" for i in range(len(EXAMPLES))])
def test_readme_examples_run(example: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-W", "error", "-c", example], env=environment, check=True, timeout=120)


def test_gpt2_has_the_tensors_of_the_checkpoint() -> None:
    shapes = gpt2_124m()
    assert len(shapes) == 148
    assert sum(math.prod(shape) for shape in shapes) == 124_439_808
    assert set(SHAPES) == {"gpt2-124m", "square-1b"}


def test_rows_are_appended_with_what_they_were_measured_on(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    record.append("any", [{"value": 1}], path)
    record.append("any", [{"value": 2}], path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["value"] for row in rows] == [1, 2]
    assert rows[0].keys() >= {"date", "commit", "device", "python", "torch", "triton", "cuda"}


def test_spread_is_median_and_quintiles() -> None:
    assert record.spread([5.0, 1.0, 4.0, 2.0, 3.0]) == {"median": 3.0, "p20": 1.2, "p80": 4.8}


def test_the_host_bench_times_every_provider(monkeypatch) -> None:
    from rlx_gpu import launch

    monkeypatch.setattr(launch, "launch", launch.launch)  # the bench replaces it; put it back
    rows = host.measure(count=7, repeats=5)
    assert [row["provider"] for row in rows[::2]] == list(host.PROVIDERS)
    assert {row["caches"] for row in rows} == {"cold", "steady"}
    assert all(row["us_per_tensor"]["median"] > 0 for row in rows)
