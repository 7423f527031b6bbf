"""Writes trajectories.npz: what public packages compute for the cases declared here.

Run it as `python tests/data/make_trajectories.py`. A case whose package is not installed keeps its numbers, as does one
whose package agrees with them up to `atol`, so that the file changes only where a case does. README.md says what is in
it, and how to add a case.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("trajectories.npz")
Array = np.ndarray[Any, np.dtype[np.float64]]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Case:
    """One run of an optimizer.

    Args:
        optimizer: the name in this project.
        source: a key of `SOURCES`.
        hyper: of this project's constructor; what the source needs beyond that, it adds itself.
        shape: of the parameter.
        steps: of the run.
        atol: how far two implementations may be apart.
    """

    optimizer: str
    source: str
    hyper: dict[str, Any]
    shape: tuple[int, ...]
    steps: int = 12
    atol: float = 1e-12


def declared() -> dict[str, Case]:
    """Every case by its key, which its place and its optimizer make: new ones come last."""
    cases = [
        *drawn(0.0108, 0.0106, (0.8849, 0.9598), 0.9575, 0.0064, (0.6209, 0.8230), 0.1156, (0.0380, 0.9697)),
        *drawn(0.0163, 0.0400, (0.9609, 0.9188), 0.9728, 0.0139, (0.3920, 0.9412), 0.0297, (0.0357, 0.9092)),
        *radam_of_torch(0.0402, (0.903, 0.954), 0.1449),
        *radam_of_torch(0.0215, (0.8339, 0.9794), 0.0268),
        # A new case goes here, Case("Name", "package.Name", {...}, (8, 12)), and what computes it among SOURCES.
    ]
    return {f"{place:03}_{case.optimizer}": case for place, case in enumerate(cases)}


def drawn(
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    radam_beta2: float,
    momentum_decay: float,
    nus: tuple[float, float],
    gamma: float,
    muon: tuple[float, float],
) -> Iterator[Case]:
    """The cases of one draw of hyperparameters."""
    sgd = {"lr": lr, "weight_decay": weight_decay}
    heavy = {"lr": lr, "momentum": betas[0], "weight_decay": weight_decay}
    adam = {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay}
    tiny = {**adam, "eps": 1e-30}  # as good as none: the packages add theirs elsewhere
    warmed = {**adam, "momentum_decay": momentum_decay}
    for optimizer, source, hyper, atol in (
        ("SGD", "torch.optim.SGD", sgd, 1e-12),
        ("SGD", "torch.optim.SGD", heavy, 1e-12),
        ("SGD", "torch.optim.SGD", {**heavy, "nesterov": True}, 1e-12),
        ("Adam", "torch.optim.Adam", adam, 1e-12),
        ("Adam", "torch.optim.Adam", {**adam, "amsgrad": True}, 1e-12),
        ("AdamW", "torch.optim.AdamW", adam, 1e-12),
        ("AdamW", "torch.optim.AdamW", {**adam, "amsgrad": True}, 1e-12),
        ("NAdamW", "optax.nadamw", adam, 1e-12),
        ("NAdamW", "torch.optim.NAdam(decoupled_weight_decay)", warmed, 1e-12),
        (
            "RAdam",
            "optax.scale_by_radam(threshold=4)",
            {**adam, "betas": (betas[0], radam_beta2), "threshold": 4.0},
            1e-6,
        ),
        ("QHAdamW", "pytorch_optimizer.QHAdam", {**tiny, "nus": (0.7, 1.0)}, 1e-7),
        ("QHAdamW", "pytorch_optimizer.QHAdam", {**tiny, "nus": nus}, 1e-7),
        ("LAMB", "optax.lamb", adam, 1e-12),
        ("Lion", "optax.lion", {"lr": lr, "betas": betas, "weight_decay": weight_decay}, 1e-12),
        ("Adafactor", "torch.optim.Adafactor(lr=1e-2)", {}, 1e-12),
        ("Adafactor", "pytorch_optimizer.AdaFactor(relative_step=False, scale_parameter=False)", sgd, 1e-12),
        ("MARS", "pytorch_optimizer.MARS(adamw, optimize_1d)", {**tiny, "gamma": gamma}, 1e-7),
    ):
        for shape in ((7,), (8, 12)):
            yield Case(optimizer, source, hyper, shape, atol=atol)
    momentum = {"lr": muon[0], "momentum": muon[1], "nesterov": False, "weight_decay": 0.0, "adjust_lr_fn": "original"}
    for shape in ((8, 12), (12, 8)):
        yield Case("Muon", "optax.contrib.scale_by_muon", momentum, shape, steps=8)


def radam_of_torch(lr: float, betas: tuple[float, float], weight_decay: float) -> Iterator[Case]:
    """RAdam with either weight decay, past its threshold."""
    for decoupled in (False, True):
        hyper = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "decoupled_weight_decay": decoupled}
        for shape in ((7,), (8, 12), (3, 6, 5)):
            yield Case("RAdam", "torch.optim.RAdam", hyper, shape, steps=24, atol=1e-11)


def run_torch(make: Callable[..., Any], hyper: Mapping[str, Any], start: Array, grads: Array) -> Array:
    """The parameter after each step of an optimizer with torch's interface."""
    import torch

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of what packages make themselves
    try:
        param = torch.nn.Parameter(torch.tensor(start))
        optimizer, params = make([param], **hyper), []
        for grad in grads:
            param.grad = torch.tensor(grad)
            optimizer.step()
            params.append(param.detach().numpy().copy())
    finally:
        torch.set_default_dtype(default)
    return np.array(params)


def run_optax(transformation: Any, start: Array, grads: Array) -> Array:
    """The parameter after each step of a gradient transformation."""
    import jax

    with jax.enable_x64(True):
        param, params = jax.numpy.asarray(start), []
        state = transformation.init(param)
        for grad in grads:
            update, state = transformation.update(jax.numpy.asarray(grad), state, param)
            param = param + update
            params.append(np.asarray(param))
    return np.array(params)


def by_torch(hyper: dict[str, Any], start: Array, grads: Array, *, name: str, **more: Any) -> Array:
    """An optimizer of torch.optim."""
    import torch

    return run_torch(getattr(torch.optim, name), {**hyper, **more}, start, grads)


def by_pytorch_optimizer(hyper: dict[str, Any], start: Array, grads: Array, *, name: str, **more: Any) -> Array:
    """An optimizer of pytorch_optimizer."""
    import pytorch_optimizer

    return run_torch(getattr(pytorch_optimizer, name), {**hyper, **more}, start, grads)


def by_optax(hyper: dict[str, Any], start: Array, grads: Array, *, name: str) -> Array:
    """An optimizer of optax."""
    import optax

    given = {key: hyper[key] for key in ("eps", "weight_decay") if key in hyper}
    beta1, beta2 = hyper["betas"]
    return run_optax(getattr(optax, name)(hyper["lr"], b1=beta1, b2=beta2, **given), start, grads)


def by_optax_radam(hyper: dict[str, Any], start: Array, grads: Array) -> Array:
    """RAdam that rectifies from 4 on, with coupled weight decay."""
    import optax

    beta1, beta2 = hyper["betas"]
    rectified = optax.scale_by_radam(b1=beta1, b2=beta2, eps=hyper["eps"], threshold=4.0)
    decay, descent = optax.add_decayed_weights(hyper["weight_decay"]), optax.scale(-hyper["lr"])
    return run_optax(optax.chain(decay, rectified, descent), start, grads)


def by_optax_muon(hyper: dict[str, Any], start: Array, grads: Array) -> Array:
    """Muon without weight decay, scaled by the root of rows over columns where that is above one."""
    import optax

    rows, columns = start.shape
    muon = optax.contrib.scale_by_muon(beta=hyper["momentum"], nesterov=hyper["nesterov"], eps=1e-30)
    descent = optax.scale(-hyper["lr"] * max(1.0, rows / columns) ** 0.5)
    return run_optax(optax.chain(muon, descent), start, grads)


def source(function: Callable[..., Array], **more: Any) -> Callable[[dict[str, Any], Array, Array], Array]:
    """A way to compute a case, with arguments that its hyperparameters do not have."""
    return lambda hyper, start, grads: function(hyper, start, grads, **more)


# By the words that say what computed a case; the package is what precedes the first dot.
SOURCES = {
    "torch.optim.SGD": source(by_torch, name="SGD"),
    "torch.optim.Adam": source(by_torch, name="Adam"),
    "torch.optim.AdamW": source(by_torch, name="AdamW"),
    "torch.optim.RAdam": source(by_torch, name="RAdam"),
    "torch.optim.NAdam(decoupled_weight_decay)": source(by_torch, name="NAdam", decoupled_weight_decay=True),
    "torch.optim.Adafactor(lr=1e-2)": source(by_torch, name="Adafactor", lr=1e-2, eps=(1e-30, 1e-3)),
    "optax.nadamw": source(by_optax, name="nadamw"),
    "optax.lamb": source(by_optax, name="lamb"),
    "optax.lion": source(by_optax, name="lion"),
    "optax.scale_by_radam(threshold=4)": by_optax_radam,
    "optax.contrib.scale_by_muon": by_optax_muon,
    "pytorch_optimizer.QHAdam": source(by_pytorch_optimizer, name="QHAdam", weight_decouple=True),
    "pytorch_optimizer.MARS(adamw, optimize_1d)": source(
        by_pytorch_optimizer, name="MARS", mars_type="adamw", optimize_1d=True
    ),
    "pytorch_optimizer.AdaFactor(relative_step=False, scale_parameter=False)": source(
        by_pytorch_optimizer, name="AdaFactor", betas=(None, 0.999), relative_step=False, scale_parameter=False
    ),
}


def installed(case: Case) -> bool:
    """Whether the package that computes a case can be imported."""
    return importlib.util.find_spec(case.source.partition(".")[0]) is not None


def inputs(key: str, case: Case, stored: Arrays) -> tuple[Array, Array]:
    """The start and the gradients of a case: the stored ones, or new ones that depend on the key alone."""
    if f"{key}/p0" in stored:
        return stored[f"{key}/p0"], stored[f"{key}/grads"]
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    return rng.normal(size=case.shape), rng.normal(size=(case.steps, *case.shape))


def computed(key: str, case: Case, stored: Arrays) -> Array:
    """The parameter after each step as the package computes it."""
    return SOURCES[case.source](case.hyper, *inputs(key, case, stored))


def trajectory(key: str, case: Case, stored: Arrays) -> Array:
    """The parameter after each step: what is stored, computed where nothing is.

    Raises:
        ValueError: neither installed nor stored, or the package computes something else than what is stored.
    """
    old = stored.get(f"{key}/params")
    if not installed(case):
        if old is None:
            raise ValueError(f"{key}: {case.source} is not installed, and no numbers are stored")
        return old
    new = computed(key, case, stored)
    if old is None:
        return new
    if not (off := np.abs(new - old).max()) <= case.atol:
        raise ValueError(f"{key}: {case.source} is {off:.1e} off what is stored, allowed {case.atol:.0e}")
    return old


def made(stored: Arrays) -> dict[str, Array]:
    """The arrays of every declared case."""
    arrays = {}
    for key, case in declared().items():
        arrays[f"{key}/p0"], arrays[f"{key}/grads"] = inputs(key, case, stored)
        arrays[f"{key}/params"] = trajectory(key, case, stored)
    return arrays


def index() -> list[dict[str, Any]]:
    """The declared cases as they stand in the file."""
    entries: list[dict[str, Any]] = json.loads(json.dumps([asdict(case) for case in declared().values()]))
    return [{"key": key, **entry} for key, entry in zip(declared(), entries, strict=True)]


def main() -> None:
    """Writes the file if a case has changed, and says what was computed and what was kept."""
    stored = dict(np.load(FILE)) if FILE.exists() else {}
    arrays = made(stored)
    for package in sorted({case.source.partition(".")[0] for case in declared().values()}):
        count = sum(case.source.startswith(f"{package}.") for case in declared().values())
        try:
            print(f"{package} {importlib.metadata.version(package)}: {count} cases computed")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package} is not installed: {count} cases kept")
    old = json.loads(str(stored.pop("index", "[]")))
    if old == index() and arrays.keys() == stored.keys():
        print(f"{FILE.name} stays as it is")
    else:
        np.savez_compressed(FILE, **arrays, index=np.array(json.dumps(index())))
        print(f"{FILE.name} written, {len(arrays) // 3} cases")


if __name__ == "__main__":
    main()
