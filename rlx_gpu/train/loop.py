"""The training loop: one run, from the first step or a checkpoint to the last step or Ctrl-C."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
import torch
from torch.optim.lr_scheduler import LambdaLR

from .. import optim
from ..hessian import gauss_newton_bartlett
from ..split import split_parameters
from ..table import TABLE
from .checkpoint import append_metrics, load_checkpoint, replace_file, require_config, save_checkpoint, write_metrics
from .config import TrainConfig, TrainError
from .data import Corpus, batch, validation_batches
from .model import ByteGPT

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
    """The model, its optimizer and its schedule, at some step."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, device
        self.model = ByteGPT(config.model).to(device)
        rate = {} if config.lr is None else {"lr": config.lr}
        split = TABLE[config.optimizer].hidden_only
        params = split_parameters(self.model) if split else self.model.named_parameters()
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
        """All that changes from step to step, torch's generators included."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"]["cpu"])
        if len(state["rng"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])

    def _update_hessian(self, number: int, text: torch.Tensor) -> None:
        """Give Sophia a new estimate of the Hessian's diagonal, from labels drawn as (seed, step) alone decides."""
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
    """A run at its last step, or where it was stopped."""

    run: Run
    history: list[Record]
    interrupted: bool = False  # by Ctrl-C; a checkpoint of the last step was saved
    diverged: str = ""  # why the run ended early by itself; no checkpoint of its end was saved


def kept_generators(device: torch.device) -> AbstractContextManager[None]:
    """Leave torch's random generators as they were found."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """The Ctrl-C so far, to be read between two steps, so that no step is left half done; a second one acts at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    main = threading.current_thread() is threading.main_thread()  # no other thread gets signals
    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def named_memory_errors() -> Iterator[None]:
    """Say which choices would take less memory where there is too little."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On the CPU torch has no type of its own for it.
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise TrainError(
                "the run does not fit into memory; give a smaller --batch-size, --context, --width or --layers"
            ) from error
        raise


def begin(
    config: TrainConfig, corpus: Corpus, checkpoint: Path | None, device: torch.device
) -> tuple[Run, list[Record]]:
    """A run at its first step or as the checkpoint has it, and its history; refuses choices that cannot work."""
    corpus.require_context(config.model.context)
    saved = load_checkpoint(checkpoint) if checkpoint else None
    if checkpoint and saved:
        require_config(checkpoint, saved["config"], config)
    run = Run(config, device)
    if saved is None:
        return run, []
    run.load_state_dict(saved)
    return run, saved["history"]


def rehearse(config: TrainConfig, corpus: Corpus, checkpoint: Path | None, device: torch.device) -> None:
    """Begin a run and drop it, so that what cannot work is known before a file is touched."""
    with kept_generators(device), named_memory_errors():
        begin(config, corpus, checkpoint, device)


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
        out: the run's folder; made if missing.
        resume: go on from the folder's checkpoint instead of starting anew.
        on_step: called with the record of each step, after it.

    Raises:
        TrainError: nothing to resume, other choices than the checkpoint's, or choices that cannot work.
    """
    path, log = out / "checkpoint.pt", out / "metrics.jsonl"
    with kept_generators(device), named_memory_errors(), stop_requests() as stop:
        run, history = begin(config, corpus, path if resume else None, device)
        if resume:
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
                stopping = bool(stop)  # read once: a step that Ctrl-C ends is saved
                if number % checkpoint_every == 0 or number == config.steps or stopping:
                    save()
                if stopping:
                    break
        except DivergedError as error:
            return RunResult(run, history, diverged=str(error))
        finished = len(history) == config.steps
        if finished:  # the weights alone, in a format that any framework reads
            weights = {name: tensor.contiguous().cpu() for name, tensor in run.model.state_dict().items()}
            replace_file(out / "model.safetensors", lambda file: file.write(safetensors.torch.save(weights)))
    return RunResult(run, history, interrupted=not finished)
