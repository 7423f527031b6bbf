"""What a training run is: every choice that decides its weights, and the errors that name them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rlx_gpu.naming import spelled

LARGEST = 2**32 - 1  # from every seed up to here all generators can be seeded


class TrainError(RuntimeError):
    """A run that cannot start or go on; its message says why and what to do."""


def require_range(option: str, value: int, low: int) -> None:
    """Refuse a number outside `low` to `LARGEST`.

    Raises:
        TrainError: it is outside.
    """
    if value < low:
        raise TrainError(f"{option} must be at least {low}, not {value}")
    if value > LARGEST:
        raise TrainError(f"{option} must be at most {LARGEST}, not {value}")


@dataclass(frozen=True)
class ModelConfig:
    """The size of the example's GPT.

    Args:
        context: bytes that a prediction can look back on, at least 2.
        width: size of the residual stream; a multiple of `heads`.
        layers: number of transformer blocks.
        heads: attention heads in a block.
    """

    context: int = 64
    width: int = 128
    layers: int = 3
    heads: int = 4

    def __post_init__(self) -> None:
        require_range("--context", self.context, 2)
        require_range("--layers", self.layers, 1)
        require_range("--width", self.width, 1)
        if self.width % self.heads:
            raise TrainError(f"--width must be a multiple of the {self.heads} attention heads, not {self.width}")


@dataclass(frozen=True)
class TrainConfig:
    """The choices that decide a run's weights. Two runs with equal configurations on one machine end bit-identical.

    Args:
        optimizer: a name in `rlx_gpu.table.TABLE`.
        steps: training steps; the learning rate's schedule spans them.
        lr: peak learning rate; None is the optimizer's own rule, for those that have one (Adafactor).
        warmup: steps of linear warm-up at the start of the schedule.
        seed: decides the initial weights and every batch.
        batch_size: sequences in a batch.
        state_dtype: storage of the optimizer's state, "float32" or "bfloat16".
        model: the size of the network.
        data: digest of the text, so that a run is never resumed on another text.
    """

    optimizer: str
    steps: int = 400
    lr: float | None = None
    warmup: int = 20
    seed: int = 0
    batch_size: int = 32
    state_dtype: str = "float32"
    model: ModelConfig = ModelConfig()
    data: str = ""

    def __post_init__(self) -> None:
        require_range("--steps", self.steps, 1)
        require_range("--batch-size", self.batch_size, 1)
        require_range("--warmup", self.warmup, 0)
        require_range("--seed", self.seed, 0)

    def as_dict(self) -> dict[str, Any]:
        """Every choice under the name of its command line option, `data` apart."""
        choices = asdict(self)
        return {
            key.replace("_", "-"): value for key, value in (choices | choices.pop("model")).items() if key != "model"
        }


def optimizer_names(name: str) -> list[str]:
    """The optimizer of this name, in any case; the registry's, in its order, if that is "all".

    Raises:
        TrainError: no optimizer has this name; the message lists those there are.
    """
    from rlx_gpu.table import TABLE

    try:
        name = spelled(name, ["all", *TABLE], "optimizer")
    except ValueError as error:
        raise TrainError(str(error)) from None
    return list(TABLE) if name == "all" else [name]
