"""The README's tables and figures, from the registry and from recorded rows; `rlx-gpu bench plot` writes them."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ..table import TABLE, Algorithm
from . import rows, train_rows
from .charts import CHARTS, PLOTS
from .providers import OURS
from .record import RESULTS
from .rows import Row, is_peer, measured, recorded, task

README = Path(__file__).resolve().parent.parent / "README.md"


def markdown(header: list[str], cells: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(name: str) -> str:
    """A chart as a Markdown image, or nothing where it was never drawn."""
    drawn = (PLOTS / f"{name}.svg").exists()
    return f"![{CHARTS[name].alt}](bench/plots/{name}.svg)\n\n" if drawn else ""


def optimizers(results: Path = RESULTS) -> str:
    """Every optimizer: what it is, where it is from, its state, and the bytes its step moves."""
    return markdown(
        ["optimizer", "what it is", "source", "state", "bytes/param"],
        [
            [f"`{algorithm.name}`", *_words(algorithm), _state(algorithm), _traffic(algorithm, results)]
            for algorithm in TABLE.values()
        ],
    )


def host(results: Path = RESULTS) -> str:
    """Host time by number of tensors."""
    found = rows.host(results)
    costs = {(row["tensors"], row["provider"], row["caches"]): row["us_per_tensor"]["median"] for row in found}
    cells = [
        [str(tensors), provider, *(f"{costs[tensors, provider, caches]:.2f}" for caches in ("steady", "cold"))]
        for tensors, provider in dict.fromkeys((row["tensors"], row["provider"]) for row in found)
    ]
    table = markdown(["tensors", "provider", "µs a tensor, steady", "with cold caches"], cells)
    return f"{figure('host')}{table}\n\n{_reproduce('host', found)}"


def elementwise(results: Path = RESULTS) -> str:
    """Whole steps in float32 and bfloat16: ours, its share of a copy's bandwidth, and the fastest peer."""
    found = rows.elementwise(results)
    formats = ("float32", "bfloat16")
    races = _races(found, lambda row: (row["model"], task(row)), lambda row: row["storage"])
    cells = [
        [*case, *(cell for form in formats for cell in _race(by_format.get(form, []), "share_of_copy"))]
        for case, by_format in races.items()
    ]
    header = [
        column for form in formats for column in (f"{form}, ms", "of a copy", "fastest peer", "its time over ours")
    ]
    table = markdown(["model", "optimizer", *header], cells)
    pictures = figure("roofline") + figure("steps")
    folded = f"<details><summary>Every model and optimizer</summary>\n\n{table}\n\n</details>"
    return f"{pictures}{folded}\n\n{_reproduce('elementwise', found)}"


def matrix(results: Path = RESULTS) -> str:
    """Matrix optimizers and their parts: ours, its share of a large matrix product's rate, and the fastest peer."""
    found = rows.matrix(results)
    races = _races(
        found,
        lambda row: (task(row), row.get("model") or " × ".join(map(str, row["shape"])), row["storage"]),
        lambda row: "",
    )
    cells = [[*case, *_race(race[""], "share_of_matmul")] for case, race in races.items()]
    table = markdown(
        ["what", "model or shape", "storage", "ms", "of a large product", "fastest peer", "its time over ours"], cells
    )
    return f"{figure('matrix_steps')}{figure('newton_schulz')}{table}\n\n{_reproduce('matrix', found)}"


def cpu(results: Path = RESULTS) -> str:
    """Whole steps over CPU tensors: ours in every storage, and the fastest peer where there is one."""
    found = rows.cpu(results)
    raced, alone = ("float32", "bfloat16"), ("bfloat16_stochastic", "bfloat16_float32", "float16")
    races = _races(found, lambda row: (row["model"], task(row)), lambda row: row["storage"])
    cells = []
    for case, by_format in races.items():
        peers = [_race(by_format.get(form, []), "") for form in raced]
        ours = [_race(by_format.get(form, []), "")[0] for form in alone]
        cells.append([*case, *(cell for ms, _, *peer in peers for cell in (ms, *peer)), *ours])
    header = [column for form in raced for column in (f"{form}, ms", "fastest peer", "its time over ours")]
    table = markdown(["tensors", "optimizer", *header, *(f"{form}, ms" for form in alone)], cells)
    threads = found[0]["threads"]
    return f"{table}\n\nOn {threads} threads. {_reproduce('cpu', found)}"


def training(results: Path = RESULTS) -> str:
    """Time to the target loss, the fastest optimizer first."""
    found = train_rows.finals(results)
    runs: dict[str, list[Row]] = {}
    for row in found:
        runs.setdefault(row["optimizer"], []).append(row)
    order = sorted(runs, key=lambda name: train_rows.standing(runs[name]))
    table = markdown(
        ["optimizer", "tuned lr", "seconds to the target", "steps to it", "ms a step", "last validation loss"],
        [[f"`{name}`", *train_rows.summary(runs[name])] for name in order],
    )
    last = found[0]
    setting = (
        f"Target: a validation loss of {last['target_loss']:.3f} nats a byte. {last['steps']} steps at most,"
        f" {len(runs[order[0]])} seeds; median and range over the seeds.{train_rows.edge_in_words(found)}"
    )
    return f"{figure('train')}{table}\n\n{setting} {_reproduce(_training_command(results), found)}"


def _training_command(results: Path) -> str:
    """The train bench with the options of the run that is shown; its longest sweep says how many rates it could try."""
    run = train_rows.last_run(results)
    phases = [Counter(row["optimizer"] for row in run if row["phase"] == phase) for phase in ("sweep", "final")]
    sizes = " ".join(f"--{name} {run[0]['config'][name]}" for name in ("width", "layers", "context", "batch-size"))
    tries, seeds = (max(counted.values()) for counted in phases)
    return f"train --steps {run[0]['steps']} {sizes} --tries {tries} --seeds {seeds}"


def _unless_empty(
    bench: str, section: Callable[[Path], str], found: Callable[[str, Path], list[Row]] = recorded
) -> Callable[[Path], str]:
    """A section that says so where its bench has no rows."""
    missing = f"Nothing is recorded yet: `rlx-gpu bench {bench}` measures and records it."
    return lambda results: section(results) if found(bench, results) else missing


SECTIONS = {
    "optimizers": optimizers,
    "elementwise": _unless_empty("elementwise", elementwise),
    "matrix": _unless_empty("matrix", matrix),
    "train": _unless_empty("train", training),
    "host": _unless_empty("host", host),
    "cpu": _unless_empty("cpu", cpu, lambda _, results: rows.cpu(results)),
}


def render(text: str) -> str:
    """The README with every marked section written anew."""
    for name, section in SECTIONS.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = marked.search(text)
        if found is None:
            raise ValueError(f"{README.name} has no section <!-- {name} --> ... <!-- /{name} -->")
        text = text.replace(found[0], f"{found[1]}{section(RESULTS)}\n{found[2]}")
    return text


def write() -> None:
    """Rewrite the README's marked sections."""
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")


def _races(
    found: list[Row], case: Callable[[Row], tuple[str, ...]], column: Callable[[Row], str]
) -> dict[tuple[str, ...], dict[str, list[Row]]]:
    """case -> column -> the rows of all providers, of those cases that ours took part in."""
    races: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    for row in found:
        races.setdefault(case(row), {}).setdefault(column(row), []).append(row)
    return {
        name: columns
        for name, columns in races.items()
        if any(row["provider"] == OURS for race in columns.values() for row in race)
    }


def _race(race: list[Row], share: str) -> list[str]:
    """Our milliseconds and share, the fastest peer and its time over ours; dashes for what there is not."""
    own = next((row for row in race if row["provider"] == OURS), None)
    peer = min(filter(is_peer, race), key=lambda row: row["ms"]["median"], default=None)
    if own is None:
        return ["–"] * 4
    ours = own["ms"]["median"]
    against = ["–"] * 2 if peer is None else [peer["provider"], f"{peer['ms']['median'] / ours:.2f}"]
    return [f"{ours:.3g}", f"{own[share]:.0%}" if own.get(share) else "–", *against]


def _reproduce(bench: str, found: list[Row]) -> str:
    """On what and when, and the command."""
    threads = found[0].get("openblas_threads")
    variable = f"OPENBLAS_NUM_THREADS={threads} " if threads else ""
    return f"{measured(found)} Reproduce: `{variable}rlx-gpu bench {bench}`."


def _words(algorithm: Algorithm) -> list[str]:
    """What the reference says of itself, and its first source with the year."""
    what = (algorithm.reference.__doc__ or "").split("\n")[0].split(": ", 1)[-1].rstrip(".")
    source = (inspect.getdoc(algorithm.reference.update) or "").partition("Source: ")[2]
    clause = re.match(r".*?\d{4}( \(arXiv [\d.]+\))?", source.replace("\n", " "))
    return [what, clause[0] if clause else "?"]


def _state(algorithm: Algorithm) -> str:
    """The tensors kept for a matrix with the default hyperparameters (SGD with momentum)."""
    given = {"lr": 1e-3, **({"momentum": 0.9} if algorithm.name == "SGD" else {})}
    scalars = algorithm.scalar_slots
    slots = algorithm.reference.init_state((2, 2), **algorithm.resolve(given)).keys()
    return ", ".join(f"`{slot}`" for slot in slots if slot not in scalars)


def _traffic(algorithm: Algorithm, results: Path) -> str:
    """Bytes a parameter of each launch; none for a matrix optimizer, whose time is that of matrix products."""
    if algorithm.of_matrices:
        return "–"
    step = {"SGD": "sgd_momentum"}.get(algorithm.name, algorithm.name.lower())
    launches = [row for row in recorded("kernels", results) if row["optimizer"] == algorithm.name]
    return " + ".join(
        str(row["bytes_per_param"]) for row in launches if row["name"].split("/")[0] == step and row["bytes_per_param"]
    )
