"""The command line, `rlx-gpu`. A command here only reads its options; what it does is imported when it runs."""

from __future__ import annotations

import importlib
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

from . import __version__
from .kernels.formats import STORAGES

try:
    import typer
    import typer.core
    import typer.main
except ModuleNotFoundError as error:
    raise SystemExit(
        "The command line needs typer and rich: pip install 'rlx-gpu[cli]'"
        " (`python -m rlx_gpu.doctor` works without them)"
    ) from error

app = typer.Typer(
    name="rlx-gpu",
    help="Fused GPU optimizers: train an example, check this machine and the kernels, compile them, time them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

OPTIMIZERS = "Names in any case, with commas or repeated; all if not given"
DTYPES = f"Storages, with commas or repeated; all if not given: {', '.join(STORAGES)}."


def main() -> None:
    """Run the command line on this process's arguments."""
    app(prog_name="rlx-gpu")


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Options of the program itself."""
    if version:
        typer.echo(f"rlx-gpu {__version__}")
        raise typer.Exit


@app.command()
def train(
    optimizer: Annotated[str, typer.Option(help="An optimizer's name in any case, or all to compare them.")] = "AdamW",
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 400,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate; one that suits the optimizer if not given.")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Steps of linear warm-up; a cosine follows.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Decides the initial weights and every batch.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in a batch.")] = 32,
    state_dtype: Annotated[
        str, typer.Option(help="Storage of the optimizer's state: float32 or bfloat16.")
    ] = "float32",
    context: Annotated[int, typer.Option(min=2, help="Bytes the model looks back on.")] = 64,
    width: Annotated[int, typer.Option(min=4, help="Width of the model, a multiple of 4.")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="Transformer blocks.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    data: Annotated[
        Path | None, typer.Option(help="A folder of *.py files to train on; this Python's library if not given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; runs/<optimizer> if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew even if the folder has an unfinished run.")
    ] = False,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 50,
) -> None:
    """Train a small byte-level GPT on Python's own sources; end with a loss curve, a table and a sample of text."""
    with needs_named("training", "'rlx-gpu[train]'"):
        from .train.config import ModelConfig, TrainConfig, TrainError
        from .train.plan import Request
        from .train.session import run_session
    program = ["rlx-gpu"] if shutil.which("rlx-gpu") else [sys.executable, "-m", "rlx_gpu"]
    command = [*program, *(argument for argument in sys.argv[1:] if argument not in ("--resume", "--overwrite"))]
    try:
        choices = TrainConfig(
            optimizer=optimizer,
            steps=steps,
            lr=lr,
            warmup=warmup,
            seed=seed,
            batch_size=batch_size,
            state_dtype=state_dtype,
            model=ModelConfig(context=context, width=width, layers=layers),
        )
        request = Request(choices, out, device, data, resume, overwrite, checkpoint_every)
        raise typer.Exit(run_session(request, shlex.join(command)))
    except TrainError as error:
        fail(str(error), code=2)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False) -> None:
    """Show versions and devices, which path a tensor would take, and what is wrong if something is."""
    from .doctor import run

    raise typer.Exit(run(as_json))


@app.command()
def kernels(
    arch: Annotated[str, typer.Option(help="The architecture to compile for; no GPU is needed.")] = "sm_90",
    optimizer: Annotated[list[str] | None, typer.Option(help=f"{OPTIMIZERS}, and the kernels that serve all.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help=DTYPES)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compile every kernel variant and show its registers, spills, vector width and bytes per parameter."""
    with needs_named("kernels"):
        from .compiled.report import run
    raise typer.Exit(run(arch, optimizer or (), dtype or (), as_json))


@app.command()
def parity(
    optimizer: Annotated[list[str] | None, typer.Option(help=f"{OPTIMIZERS}; each in every variant.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help=DTYPES)] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="cuda, interpreted or cpu; repeatable. The GPU, or interpreted kernels, and the CPU if not given."
        ),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="SHAPE,...",
            help="Parameters, such as scalar,127,33x128,16x9:transposed,300:unaligned; a telling dozen if not given.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps, each compared.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Run every optimizer here, on the GPU and on the CPU, and hold parameters and state to the float64 reference."""
    with needs_named("parity"):
        from .parity.report import run
    raise typer.Exit(run(optimizer or (), dtype or (), device or (), shapes, steps, as_json))


class Benches(typer.core.TyperGroup):
    """The benches, each a module of `rlx_gpu.bench` with a `main` that is imported when it is asked for."""

    NAMES = ("elementwise", "matrix", "host", "cpu", "train", "plot")

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in order."""
        return list(self.NAMES)

    def get_command(self, ctx: Any, name: str) -> Any:
        """The command, or None if there is none of this name."""
        if name not in self.NAMES:
            return None
        with needs_named("this bench", "'rlx-gpu[train]'"):
            module = importlib.import_module(f"rlx_gpu.bench.{name}")
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(name)(module.main)
        return typer.main.get_command(single)


bench = typer.Typer(cls=Benches, no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.callback()
def benches() -> None:
    """Measure steps beside other packages', and record what was measured on which machine."""


@contextmanager
def needs_named(what: str, extra: str = "") -> Iterator[None]:
    """Where a package is missing, say which, and how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        fail(f"{what} needs {missing}, which is not installed: pip install {extra or missing}", code=1)


def fail(message: str, code: int) -> NoReturn:
    """End the program with a message on the standard error."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
