"""Writes the README's tables from the registry and from recorded results. `python -m rlx_gpu.bench.readme`"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from ..table import TABLE, Algorithm
from .record import RESULTS

README = Path(__file__).resolve().parent.parent / "README.md"


def rows(name: str) -> list[dict[str, Any]]:
    """The recorded rows of a bench, oldest first."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def latest(name: str) -> list[dict[str, Any]]:
    """The rows of a bench's last run."""
    found = rows(name)
    return [row for row in found if row["date"] == found[-1]["date"]]


def markdown(header: list[str], cells: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def optimizers() -> str:
    """Every optimizer: what it is, where it is from, its state, and the bytes its step moves."""
    return markdown(
        ["optimizer", "what it is", "source", "state", "bytes/param"],
        [
            [f"`{algorithm.name}`", *_words(algorithm), _state(algorithm), _traffic(algorithm)]
            for algorithm in TABLE.values()
        ],
    )


def host() -> str:
    """The last run of the host bench."""
    found = latest("host")
    costs = {(row["tensors"], row["provider"], row["caches"]): row["us_per_tensor"]["median"] for row in found}
    cells = [
        [str(tensors), provider, *(f"{costs[tensors, provider, caches]:.2f}" for caches in ("steady", "cold"))]
        for tensors, provider in dict.fromkeys((row["tensors"], row["provider"]) for row in found)
    ]
    table = markdown(["tensors", "provider", "µs a tensor, steady", "with cold caches"], cells)
    return f"{table}\n\n{_measured(found)} Reproduce: `make bench`."


def gpu() -> str:
    """The last run of the GPU bench, or that there is none."""
    found = rows("elementwise")
    if not found:
        return "No GPU figure is recorded yet: `make bench-gpu` measures and records them."
    last = latest("elementwise")
    cells = [
        [row["model"], row["optimizer"], row["storage"], row["provider"], f"{row['ms']['median']:.3f}", _share(row)]
        for row in last
    ]
    table = markdown(["model", "optimizer", "storage", "provider", "ms", "share of a copy"], cells)
    return f"{table}\n\n{_measured(last)} Reproduce: `make bench-gpu`."


SECTIONS = {"optimizers": optimizers, "host": host, "gpu": gpu}


def render(text: str) -> str:
    """The README with every marked section written anew."""
    for name, section in SECTIONS.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = marked.search(text)
        if found is None:
            raise ValueError(f"{README.name} has no section <!-- {name} --> ... <!-- /{name} -->")
        text = text.replace(found[0], f"{found[1]}{section()}\n{found[2]}")
    return text


def _words(algorithm: Algorithm) -> list[str]:
    """What the reference says of itself, and its first source with the year."""
    what = (algorithm.reference.__doc__ or "").split("\n")[0].split(": ", 1)[-1].rstrip(".")
    source = (inspect.getdoc(algorithm.reference.update) or "").partition("Source: ")[2]
    clause = re.match(r".*?\d{4}( \(arXiv [\d.]+\))?", source.replace("\n", " "))
    return [what, clause[0] if clause else "?"]


def _state(algorithm: Algorithm) -> str:
    """The slots of a matrix with the default hyperparameters (SGD with momentum)."""
    given = {"lr": 1e-3, **({"momentum": 0.9} if algorithm.name == "SGD" else {})}
    return ", ".join(f"`{slot}`" for slot in algorithm.reference.init_state((2, 2), **algorithm.resolve(given)))


def _traffic(algorithm: Algorithm) -> str:
    """Bytes a parameter of each launch, from the recorded compile report."""
    found = [row for row in rows("kernels") if row["optimizer"] == algorithm.name and row["bytes_per_param"]]
    specs: dict[str, list[str]] = {}
    for row in found:
        specs.setdefault(row["name"].split("/")[0], []).append(str(row["bytes_per_param"]))
    main = {"SGD": "sgd_momentum"}.get(algorithm.name, algorithm.name.lower())
    return " + ".join(specs.get(main, ["?"]))


def _share(row: dict[str, Any]) -> str:
    return f"{row['share_of_copy']:.0%}" if "share_of_copy" in row else ""


def _measured(found: list[dict[str, Any]]) -> str:
    """On what and when."""
    row = found[-1]
    return f"Measured {row['date']} UTC on {row['device']}, torch {row['torch']}, Triton {row['triton']}."


def main() -> None:
    """Rewrite the README's tables."""
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
