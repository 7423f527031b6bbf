"""Time to a loss: the example's GPT trained with every optimizer at its own tuned learning rate, several seeds each.

The learning rate of an optimizer is swept on a grid around the one of its registry entry until the best has a worse one
on either side, or until as many were tried as may be; then rows say where the sweep was open. The seed of the sweep is
none of those reported. The target is the validation loss that AdamW, tuned in the same run, reaches at 80% of its
steps. Seconds are those of the training steps, batches included, evaluation not; every step waits for the device. Sweep
and final runs are all recorded, each with its curve. `rlx-gpu bench train`
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..table import TABLE
from ..terminal import print_whole
from ..train.config import ModelConfig, TrainConfig, TrainError
from .choices import chosen, naming, results_file
from .providers import OURS
from .record import append, environment, spread
from .train_rows import summary, sweep_open

REFERENCE = "AdamW"
TARGET_AT = 0.8  # share of the reference's steps
EVALUATIONS = 50  # points of a curve
SPACING = 10**0.5  # between two learning rates of the sweep
OWN_RULE_MIDDLE = 1e-2  # middle of the sweep for an optimizer that can also do without a learning rate
WARMUP = 11  # up to the second update of what is renewed every 10 steps

Point = tuple[float, int, float]


@dataclass(frozen=True)
class Outcome:
    """One run.

    Args:
        config: its choices.
        curve: (seconds, step, validation loss) from the untrained model on.
        records: what the training loop measured in each step.
        sizes: elements of each of the model's tensors.
        diverged: the step at which it was given up, or None.
    """

    config: TrainConfig
    curve: list[Point]
    records: list[dict[str, Any]]
    sizes: Sequence[int]
    diverged: int | None = None

    @property
    def validation_loss(self) -> float:
        """The validation loss after the last step; infinite if the run diverged."""
        return float("inf") if self.diverged is not None else self.curve[-1][2]


def warm_up(config: TrainConfig, corpus: Any, device: Any) -> None:
    """Run the first steps for nothing, so that no kernel is compiled while the clock runs."""
    from ..train.loop import DivergedError, Run

    run = Run(config, device)
    with contextlib.suppress(DivergedError):
        for number in range(1, WARMUP + 1):
            run.step(number, corpus)


def train_once(config: TrainConfig, corpus: Any, device: Any) -> Outcome:
    """Train one model; it is given up where the validation loss is above that of the untrained model after the warm-up.

    Two runs with equal configurations end in the same bits; torch's random generators are left as they were found.
    """
    import torch

    from ..train.data import validation_batches
    from ..train.loop import DivergedError, Run

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        warm_up(config, corpus, device)
        run = Run(config, device)
        held_out = [
            text.to(device) for text in validation_batches(corpus.validation, config.batch_size, config.model.context)
        ]
        sizes = [param.numel() for param in run.model.parameters()]
        curve: list[Point] = [(0.0, 0, run.validation_loss(held_out))]
        records: list[dict[str, Any]] = []
        seconds, every = 0.0, -(-config.steps // EVALUATIONS)
        for number in range(1, config.steps + 1):
            try:
                record = run.step(number, corpus)
            except DivergedError:
                return Outcome(config, curve, records, sizes, number)
            records.append(record)
            seconds += record["step_ms"] / 1e3
            if number % every == 0 or number == config.steps:
                loss = run.validation_loss(held_out)
                if not math.isfinite(loss) or (number > config.warmup and loss > curve[0][2]):
                    return Outcome(config, curve, records, sizes, number)
                curve.append((seconds, number, loss))
    return Outcome(config, curve, records, sizes)


def sweep(config: TrainConfig, tries: int, train: Callable[[TrainConfig], Outcome]) -> list[Outcome]:
    """Runs at up to `tries` learning rates, outwards from the registry's until both neighbours of the best are tried.

    Adafactor, which has none there, is first tried with its own rule.
    """
    middle = TABLE[config.optimizer].example_lr
    own = [train(replace(config, lr=None))] if middle is None else []
    grid: dict[int, Outcome] = {}
    while len(own) + len(grid) < tries:
        best = min(grid, key=lambda place: grid[place].validation_loss, default=0)
        missing = [place for place in (best, best - 1, best + 1) if place not in grid]
        if not missing:
            break
        lr = float(f"{(middle or OWN_RULE_MIDDLE) * SPACING ** missing[0]:.2g}")
        grid[missing[0]] = train(replace(config, lr=lr))
    return [*own, *grid.values()]


def loss_at(outcome: Outcome, share: float) -> float:
    """The validation loss at the first evaluation at or after a share of the steps; infinite if the run diverged."""
    if outcome.diverged is not None:
        return float("inf")
    return next(loss for _, step, loss in outcome.curve if step >= share * outcome.config.steps)


def row(outcome: Outcome, phase: str, target: float) -> dict[str, Any]:
    """What is recorded of a run; what was not reached is null.

    Keys, beside those of every row:
        phase: "sweep", or "final" at the best learning rate of the sweep.
        lr, seed, steps, config: what was run; a learning rate of null is the optimizer's own rule.
        target_loss, seconds_to_target, steps_to_target: the common validation loss, and when it was reached.
        validation_loss, diverged: after the last step, or the step at which the run was given up.
        optimizer_ms: the optimizer's part of `ms`.
        openblas_threads: what NumPy was told to use, as a string, or null; later than the first run.
        curve: [seconds, step, validation loss] from the untrained model on.
        sweep_open: of final rows; see `train_rows.sweep_open`.
    """
    config = outcome.config
    reached = next(((seconds, step) for seconds, step, loss in outcome.curve if loss <= target), (None, None))
    times = {key: [record[key] for record in outcome.records] for key in ("step_ms", "optimizer_ms")}
    quantiles = {
        key: {name: round(ms, 3) for name, ms in spread(values).items()} if len(values) > 1 else None
        for key, values in times.items()
    }
    choices = config.as_dict()
    return {
        "bench": "train",
        "optimizer": config.optimizer,
        "provider": OURS,
        "provider_version": environment()["commit"],
        "model": "byte-gpt",
        "storage": "float32",
        "tensors": len(outcome.sizes),
        "parameters": sum(outcome.sizes),
        "phase": phase,
        "lr": config.lr,
        "seed": config.seed,
        "steps": config.steps,
        "target_loss": round(target, 5),
        "seconds_to_target": None if reached[0] is None else round(reached[0], 4),
        "steps_to_target": reached[1],
        "validation_loss": round(outcome.validation_loss, 5) if outcome.diverged is None else None,
        "diverged": outcome.diverged,
        "ms": quantiles["step_ms"],
        "optimizer_ms": quantiles["optimizer_ms"],
        "config": {key: choices[key] for key in sorted(choices.keys() - {"optimizer", "lr", "seed", "steps"})},
        "openblas_threads": os.environ.get("OPENBLAS_NUM_THREADS"),
        "curve": [[round(seconds, 4), step, round(loss, 4)] for seconds, step, loss in outcome.curve],
    }


def compare(
    names: Sequence[str],
    config: TrainConfig,
    *,
    tries: int,
    seeds: int,
    target: float | None,
    train: Callable[[TrainConfig], Outcome],
    record: Callable[[list[dict[str, Any]]], None],
) -> None:
    """Sweep and run one optimizer after the other, the reference first where it sets the target.

    Args:
        names: the optimizers.
        config: the choices that all runs share; its seed is the sweep's, the seeds after it are the final runs'.
        tries: learning rates to try at most.
        seeds: final runs of each.
        target: validation loss to reach; None is the reference's at 80% of its steps, the mean of its final runs.
        train: runs one configuration.
        record: called with an optimizer's rows when it is finished.

    Raises:
        TrainError: the reference diverged, so that there is no target.
    """
    order = names if target is not None else [REFERENCE, *(name for name in names if name != REFERENCE)]
    for name in order:
        shared = replace(config, optimizer=name, lr=TABLE[name].example_lr)
        tried = sweep(shared, tries, train)
        lr = min(tried, key=lambda outcome: outcome.validation_loss).config.lr
        finals = [train(replace(shared, lr=lr, seed=config.seed + 1 + i)) for i in range(seeds)]
        if target is None:
            target = statistics.fmean(loss_at(outcome, TARGET_AT) for outcome in finals)
            if target == float("inf"):
                raise TrainError(f"{REFERENCE} diverged, so there is no loss to reach; give one with --target")
        edge = sweep_open(lr, [outcome.config.lr for outcome in tried])
        swept = [row(outcome, "sweep", target) for outcome in tried]
        record([*swept, *({**row(outcome, "final", target), "sweep_open": edge} for outcome in finals)])


def main(
    optimizer: Annotated[list[str] | None, naming("--optimizer", TABLE)] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of a run.")] = 300,
    seeds: Annotated[int, typer.Option(min=1, help="Runs at the tuned learning rate.")] = 3,
    tries: Annotated[
        int, typer.Option(min=1, help="Learning rates to try at most; fewer where the best lies between worse ones.")
    ] = 8,
    target: Annotated[
        float | None, typer.Option(help="Validation loss to reach; AdamW's at 80% of its steps if not given.")
    ] = None,
    width: Annotated[int, typer.Option(min=4, help="Width of the model, a multiple of 4.")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="Transformer blocks.")] = 3,
    context: Annotated[int, typer.Option(min=2, help="Bytes the model looks back on.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in a batch.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: Annotated[Path | None, results_file("train")] = None,
) -> None:
    """Train the example with every optimizer, each tuned, and record the time to a common loss."""
    try:
        from ..train.data import load_corpus
        from ..train.session import pick_device
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: this bench needs {error.name}: pip install 'rlx-gpu[train]'") from error

    names = chosen("--optimizer", optimizer, TABLE, TABLE)
    console = Console()
    table = Table("optimizer", "lr", "s to the target", "steps to it", "ms a step", "last validation loss")
    try:
        where, corpus = pick_device(device), load_corpus()
        model = ModelConfig(context=context, width=width, layers=layers)
        shared = TrainConfig(
            REFERENCE, steps=steps, warmup=steps // 20, batch_size=batch_size, model=model, data=corpus.digest
        )
        with console.status("Starting") as status:

            def run(config: TrainConfig) -> Outcome:
                status.update(f"{config.optimizer}, learning rate {config.lr}, seed {config.seed}")
                return train_once(config, corpus, where)

            def keep(rows: list[dict[str, Any]]) -> None:
                # At once, so that an interrupted bench keeps what it has measured.
                append("train", [{**row, "ran_on": where.type} for row in rows], json)
                name, cells = rows[0]["optimizer"], summary([row for row in rows if row["phase"] == "final"])
                table.add_row(name, *cells)
                console.print(f"{name}: seconds to a loss of {rows[0]['target_loss']:.3f}: {cells[1]}", highlight=False)

            compare(names, shared, tries=tries, seeds=seeds, target=target, train=run, record=keep)
    except TrainError as error:
        raise SystemExit(f"error: {error}") from error
    print_whole(console, table)


if __name__ == "__main__":
    typer.run(main)
