"""The training loop: one run, from the first step or a checkpoint to the last step or Ctrl-C."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.optim.lr_scheduler import LambdaLR

from .checkpoint import (
    append_metrics,
    load_checkpoint,
    replace_file,
    require_same_config,
    restore_rng,
    save_checkpoint,
    write_metrics,
)
from .config import TrainConfig, TrainError
from .data import Corpus, batch, validation_batches
from .model import ByteGPT
from .stop import StopRequest

HESSIAN_EVERY = 10
VALIDATIONS = 6
FINAL_LR_SHARE = 0.1

Record = dict[str, Any]


class DivergedError(TrainError):
    """The loss is no longer a finite number."""


def learning_rate_share(step: int, steps: int, warmup: int) -> float:
    """The share of the peak learning rate at a step counted from 0: linear warm-up, then half a cosine down to 10%."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Run:
    """The model, its optimizer and its schedule, at some step.

    Args:
        config: the run's choices.
        device: where the model lives.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        from rlx_gpu import TABLE, optim, split_parameters

        torch.manual_seed(config.seed)
        self.config = config
        self.device = device
        self.model = ByteGPT(config.model).to(device)
        rate = {} if config.lr is None else {"lr": config.lr}
        params = self.model.named_parameters()
        if TABLE[config.optimizer].hidden_only:
            params = split_parameters(self.model)
        try:
            self.optimizer: torch.optim.Optimizer = getattr(optim, config.optimizer)(
                params, state_dtype=config.state_dtype, seed=config.seed, **rate
            )
        except ValueError as error:
            raise TrainError(f"{config.optimizer} refuses its settings: {error}") from error
        self.scheduler: LambdaLR | None = None
        # Adafactor without a learning rate follows its own schedule; there is no number to multiply.
        if self.optimizer.param_groups[0]["lr"] is not None:
            self.scheduler = LambdaLR(
                self.optimizer, lambda step: learning_rate_share(step, config.steps, config.warmup)
            )

    def step(self, number: int, corpus: Corpus) -> Record:
        """Train on the batch of step `number`, counted from 1, and return what was measured.

        Raises:
            DivergedError: the loss before the update is infinite or not a number; nothing was updated.
        """
        config, model = self.config, self.model
        start = time.perf_counter()
        text = batch(corpus.train, config.seed, number, config.batch_size, config.model.context).to(self.device)
        rate = self.optimizer.param_groups[0]["lr"]
        loss = model.loss(text)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss became {value} at step {number}: {config.optimizer} diverged with --lr {config.lr};"
                f" try a smaller one{'' if config.lr is None else f', such as --lr {config.lr / 10:g}'}"
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if hasattr(self.optimizer, "update_hessian") and (number - 1) % HESSIAN_EVERY == 0:
            self._update_hessian(number, text)
        self._synchronize()
        updating = time.perf_counter()
        self.optimizer.step()
        self._synchronize()
        end = time.perf_counter()
        if self.scheduler is not None:
            self.scheduler.step()
        return {
            "step": number,
            "loss": value,
            "lr": None if rate is None else float(rate),
            "step_ms": round(1e3 * (end - start), 3),
            "optimizer_ms": round(1e3 * (end - updating), 3),
        }

    @torch.no_grad()
    def validation_loss(self, batches: list[torch.Tensor]) -> float:
        """The mean loss over the batches, in nats a byte."""
        return sum(self.model.loss(text.to(self.device)).item() for text in batches) / len(batches)

    def state_dict(self) -> dict[str, Any]:
        """All that changes from step to step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])

    def _update_hessian(self, number: int, text: torch.Tensor) -> None:
        """Give Sophia a new estimate of the Hessian's diagonal, from labels drawn as (seed, step) alone decides."""
        from rlx_gpu.hessian import gauss_newton_bartlett

        generator = torch.Generator(self.device).manual_seed(self.config.seed * 1_000_003 + number)
        parameters = list(self.model.parameters())
        logits = self.model(text[:, :-1]).flatten(0, 1)
        estimates = gauss_newton_bartlett(logits, parameters, generator=generator)
        self.optimizer.update_hessian(parameters, estimates)  # type: ignore[attr-defined]

    def _synchronize(self) -> None:
        """Wait for the device, so that a time is that of finished work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class RunResult:
    """A run at its last step, or where it was stopped.

    Args:
        run: the model and optimizer as they ended.
        history: one record a step.
        interrupted: Ctrl-C ended it; a checkpoint of the last step was saved.
        diverged: why the run ended early by itself, or empty; no checkpoint of its end was saved.
    """

    run: Run
    history: list[Record]
    interrupted: bool = False
    diverged: str = ""


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Leave torch's random generators as they were found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def named_memory_errors() -> Iterator[None]:
    """Say which choices would take less memory where there is too little.

    Raises:
        TrainError: there is too little.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On the CPU torch has no type of its own for it.
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise TrainError(
                "the run does not fit into memory; give a smaller --batch-size, --context, --width or --layers"
            ) from error
        raise


def rehearse(config: TrainConfig, corpus: Corpus, device: torch.device) -> None:
    """Make a run and drop it, so that choices that cannot work are known before a file is touched.

    Raises:
        TrainError: a choice cannot work.
    """
    corpus.require_context(config.model.context)
    with kept_generators(device), named_memory_errors():
        Run(config, device)


def train(
    config: TrainConfig,
    corpus: Corpus,
    out: Path,
    *,
    device: torch.device,
    resume: bool = False,
    checkpoint_every: int = 50,
    on_step: Callable[[Record], None] = lambda record: None,
) -> RunResult:
    """Train one model and leave `metrics.jsonl`, `checkpoint.pt` and `model.safetensors` in a folder.

    A checkpoint is written after the first step, every `checkpoint_every` steps, at the end and on Ctrl-C. Until the
    first step is done, an earlier run in the folder stays whole. torch's random generators are left as they were found.

    Args:
        config: the choices that decide the weights.
        corpus: the text.
        out: the run's folder; made if missing.
        device: where to train.
        resume: go on from the folder's checkpoint instead of starting anew.
        checkpoint_every: steps between checkpoints.
        on_step: called with the record of each step, after it.

    Raises:
        TrainError: nothing to resume, other choices than the checkpoint's, or choices that cannot work.
    """
    path, log = out / "checkpoint.pt", out / "metrics.jsonl"
    saved = load_checkpoint(path) if resume else None
    if saved is not None:
        require_same_config(path, saved["config"], config)
    corpus.require_context(config.model.context)
    with kept_generators(device), named_memory_errors(), StopRequest() as stop:
        run = Run(config, device)
        history: list[Record] = []
        if saved is not None:
            run.load_state_dict(saved)
            restore_rng(saved["rng"])
            history = saved["history"]
            write_metrics(log, history)  # a killed run may have left lines past its checkpoint, or half a line

        def save() -> None:
            contents = {"config": config.as_dict(), "step": len(history), "history": history}
            save_checkpoint(path, contents | run.state_dict())

        out.mkdir(parents=True, exist_ok=True)
        try:
            validation = validation_batches(corpus.validation, config.batch_size, config.model.context)
            validate_every = -(-config.steps // VALIDATIONS)
            for number in range(len(history) + 1, config.steps + 1):
                record = run.step(number, corpus)
                if number % validate_every == 0 or number == config.steps:
                    record["validation_loss"] = run.validation_loss(validation)
                history.append(record)
                if number == 1:  # the choices work, so an earlier run may go
                    save()
                    write_metrics(log, history)
                    for result in ("model.safetensors", "loss.png"):
                        (out / result).unlink(missing_ok=True)
                else:
                    append_metrics(log, record)
                on_step(record)
                if number % checkpoint_every == 0 or number == config.steps or stop.requested:
                    save()
                if stop.requested:
                    break
        except DivergedError as error:
            return RunResult(run, history, diverged=str(error))
        finished = len(history) == config.steps
        if finished:
            export_weights(run, out / "model.safetensors")
    return RunResult(run, history, interrupted=not finished)


def export_weights(run: Run, path: Path) -> None:
    """Write the model's weights alone, in a format that any framework reads."""
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in run.model.state_dict().items()}
    replace_file(path, lambda file: file.write(safetensors.torch.save(weights)))
