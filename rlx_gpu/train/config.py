"""What a training run is: every choice that decides its weights, and the errors that name them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..naming import spelled
from ..table import TABLE

LARGEST = 2**32 - 1  # from every seed up to here all generators can be seeded


class TrainError(RuntimeError):
    """A run that cannot start or go on; its message says why and what to do."""


def require_range(option: str, value: int, low: int) -> None:
    """Refuse a number outside `low` to `LARGEST`."""
    if not low <= value <= LARGEST:
        bound = f"least {low}" if value < low else f"most {LARGEST}"
        raise TrainError(f"{option} must be at {bound}, not {value}")


@dataclass(frozen=True)
class ModelConfig:
    """The size of the example's GPT."""

    context: int = 64  # bytes that a prediction can look back on, at least 2
    width: int = 128  # of the residual stream; a multiple of `heads`
    layers: int = 3  # transformer blocks
    heads: int = 4  # in a block

    def __post_init__(self) -> None:
        require_range("--context", self.context, 2)
        require_range("--layers", self.layers, 1)
        require_range("--width", self.width, 1)
        if self.width % self.heads:
            raise TrainError(f"--width must be a multiple of the {self.heads} attention heads, not {self.width}")


@dataclass(frozen=True)
class TrainConfig:
    """The choices that decide a run's weights. Two runs with equal configurations on one machine end bit-identical."""

    optimizer: str  # a name in `rlx_gpu.table.TABLE`
    steps: int = 400  # which the learning rate's schedule spans
    lr: float | None = None  # the peak; None is the optimizer's own rule, for those that have one (Adafactor)
    warmup: int = 20  # steps of linear warm-up at the start of the schedule
    seed: int = 0  # decides the initial weights and every batch
    batch_size: int = 32  # sequences in a batch
    state_dtype: str = "float32"  # storage of the optimizer's state, or "bfloat16"
    model: ModelConfig = ModelConfig()
    data: str = ""  # digest of the text, so that a run is never resumed on another text

    def __post_init__(self) -> None:
        require_range("--steps", self.steps, 1)
        require_range("--batch-size", self.batch_size, 1)
        require_range("--warmup", self.warmup, 0)
        require_range("--seed", self.seed, 0)

    def as_dict(self) -> dict[str, Any]:
        """Every choice under the name of its command line option, `data` apart."""
        choices = asdict(self)
        choices |= choices.pop("model")
        return {key.replace("_", "-"): value for key, value in choices.items()}


def optimizer_names(name: str) -> list[str]:
    """The optimizer of this name, in any case; the registry's, in its order, if that is "all"."""
    try:
        name = spelled(name, ["all", *TABLE], "optimizer")
    except ValueError as error:
        raise TrainError(str(error)) from None
    return list(TABLE) if name == "all" else [name]
