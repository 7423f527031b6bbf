"""Who steps a model: ours, and every peer whose package can be imported. One table says who does what, how."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .timing import Step

Options = Mapping[str, Any]
OURS = "rlx-gpu"
HYPER: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}
OWN_HYPER: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}}


@dataclass(frozen=True)
class Storage:
    """Formats to step a model in.

    Args:
        param: dtype of parameters and gradients.
        ours: options that make ours store its numbers like this; None if ours has no such format.
    """

    param: str
    ours: Options | None


# Where ours has the format it is named as in `rlx-gpu kernels`; "bfloat16_float32" is bfloat16 with float32 state.
STORAGES: dict[str, Storage] = {
    "float32": Storage("float32", {}),
    "bfloat16": Storage("bfloat16", {"state_dtype": "bfloat16"}),
    "bfloat16_stochastic": Storage("bfloat16", {"state_dtype": "bfloat16", "rounding": "stochastic"}),
    "bfloat16_float32": Storage("bfloat16", {}),
    "float16": Storage("float16", {}),
    "bfloat16_kahan": Storage("bfloat16", None),  # bfloat16 state and compensation
    "bfloat16_8bit": Storage("bfloat16", None),  # moments of 8 bits, scaled by blocks
    "bfloat16_split_8bit": Storage("bfloat16", None),  # the same, and 8 more bits of the weights
}


def as_is(value: Any) -> Any:
    """The value itself."""
    return value


@dataclass(frozen=True)
class Peer:
    """Another package's optimizers, in one mode.

    Args:
        name: as rows name it.
        distribution, module: what is installed, and what is imported from it.
        classes: by our optimizer's name, the class and the hyperparameters that make it do the same.
        storages: by storage, the options that choose it.
        options: of every class.
        devices: where its steps run.
        slow: builds for long at the first step, so it only runs when it is named, or with "all".
        wrap: makes the step that is timed from the optimizer's own.
        groups: what is handed over instead of a plain list of parameters.
    """

    name: str
    distribution: str
    module: str
    classes: Mapping[str, tuple[str, Options]]
    storages: Mapping[str, Options]
    options: Options = field(default_factory=dict)
    devices: Collection[str] = ("cpu", "cuda")
    slow: bool = False
    wrap: Callable[[Step], Step] = as_is
    groups: Callable[[Sequence[Any]], Any] = as_is

    @property
    def installed(self) -> bool:
        """Whether the package can be imported."""
        return importlib.util.find_spec(self.module.partition(".")[0]) is not None

    @property
    def version(self) -> str:
        """The installed package's version."""
        return importlib.metadata.version(self.distribution)

    def step(self, optimizer: str, storage: str, params: Sequence[Any]) -> Step:
        """One step over parameters that have gradients."""
        name, hyper = self.classes[optimizer]
        make = getattr(importlib.import_module(self.module), name)
        chosen = {**HYPER, **OWN_HYPER.get(optimizer, {}), **self.options, **hyper, **self.storages[storage]}
        return self.wrap(make(self.groups(params), **chosen).step)


def compiled(step: Step) -> Step:
    """The step as `torch.compile` makes it."""
    import torch

    run: Step = torch.compile(step, fullgraph=False)
    return run


def muon_groups(params: Sequence[Any]) -> list[dict[str, Any]]:
    """All parameters as hidden matrices."""
    return [{"params": list(params), "use_muon": True}]


# Torch keeps state in the parameter's format.
IN_KIND: dict[str, Options] = {"float32": {}, "bfloat16": {}}
SGD: dict[str, tuple[str, Options]] = {"SGD": ("SGD", {})}
ADAMS: dict[str, tuple[str, Options]] = {"Adam": ("Adam", {}), "AdamW": ("AdamW", {})}
FOREACH: dict[str, tuple[str, Options]] = {
    **SGD,
    **ADAMS,
    "NAdamW": ("NAdam", {"decoupled_weight_decay": True}),
    "RAdam": ("RAdam", {}),
    "Adafactor": ("Adafactor", {}),
}
PEERS = (
    Peer("torch fused", "torch", "torch.optim", ADAMS, IN_KIND, {"fused": True}),
    # On a CPU torch's fused SGD leaves bfloat16 parameters of 16 elements or more as they are.
    Peer("torch fused", "torch", "torch.optim", SGD, IN_KIND, {"fused": True}, devices=("cuda",)),
    Peer("torch fused", "torch", "torch.optim", SGD, {"float32": {}}, {"fused": True}, devices=("cpu",)),
    Peer("torch foreach", "torch", "torch.optim", FOREACH, IN_KIND, {"foreach": True}),
    Peer("torch compiled", "torch", "torch.optim", FOREACH, IN_KIND, {"foreach": True}, slow=True, wrap=compiled),
    Peer("torch", "torch", "torch.optim", {"Muon": ("Muon", {})}, IN_KIND),
    Peer(
        "flashoptim",
        "flashoptim",
        "flashoptim",
        {name: (f"Flash{name}", {}) for name in ("SGD", "Adam", "AdamW", "Lion")},
        {
            "float32": {"quantize": False, "master_weight_bits": None},
            "bfloat16": {"quantize": False, "master_weight_bits": None},
            "bfloat16_8bit": {"master_weight_bits": None},
            "bfloat16_split_8bit": {"master_weight_bits": 24},
        },
        devices=("cuda",),
    ),
    Peer(
        "optimi",
        "torch-optimi",
        "optimi",
        {name: (name, {}) for name in ("SGD", "Adam", "AdamW", "RAdam", "Lion")},
        {"float32": {}, "bfloat16": {"kahan_sum": False}, "bfloat16_kahan": {"kahan_sum": True}},
    ),
    Peer(
        "pytorch_optimizer",
        "pytorch-optimizer",
        "pytorch_optimizer",
        {
            "QHAdamW": ("QHAdam", {"nus": (0.7, 1.0), "weight_decouple": True}),
            "Lion": ("Lion", {}),
            "LAMB": ("Lamb", {"max_grad_norm": 0.0}),
            "MARS": ("MARS", {"optimize_1d": True}),
            "Adafactor": ("AdaFactor", {"betas": (None, 0.999), "relative_step": False}),
            "SOAP": ("SOAP", {}),
            "KronPSGD": ("Kron", {}),
        },
        IN_KIND,
    ),
    Peer(
        "pytorch_optimizer",
        "pytorch-optimizer",
        "pytorch_optimizer",
        {"Muon": ("Muon", {})},
        IN_KIND,
        groups=muon_groups,
    ),
    Peer(
        "heavyball",
        "heavyball",
        "heavyball",
        {
            "AdamW": ("AdamW", {}),
            "Muon": ("Muon", {}),
            "SOAP": ("SOAP", {"precondition_frequency": 10, "max_precond_dim": 10000, "merge_dims": False}),
            "KronPSGD": ("PSGDPRO", {"max_size_triangular": 8192}),
        },
        {"float32": {}, "bfloat16": {"storage_dtype": "bfloat16"}},
        {"consume_grad": False},
        slow=True,
    ),
    Peer("kron_torch", "kron_torch", "kron_torch", {"KronPSGD": ("Kron", {})}, IN_KIND, slow=True),
    Peer(
        "torchao",
        "torchao",
        "torchao.optim",
        {"Adam": ("Adam8bit", {}), "AdamW": ("AdamW8bit", {})},
        {"bfloat16_8bit": {}},
        slow=True,
    ),
    Peer(
        "bitsandbytes",
        "bitsandbytes",
        "bitsandbytes.optim",
        {name: (name, {}) for name in ("SGD", "Adam", "AdamW", "Lion")},
        {"float32": {"optim_bits": 32}, "bfloat16_float32": {"optim_bits": 32}, "bfloat16_8bit": {"optim_bits": 8}},
        devices=("cuda",),
    ),
)


NAMES = tuple(dict.fromkeys((OURS, *(peer.name for peer in PEERS))))
QUICK = tuple(dict.fromkeys((OURS, *(peer.name for peer in PEERS if not peer.slow))))


def peers(optimizer: str, storage: str, device: str, named: Collection[str] = ()) -> list[Peer]:
    """The installed peers that do this, all but the slow ones, or those named and no others.

    Args:
        optimizer: a name of `rlx_gpu.TABLE`.
        storage: a key of STORAGES.
        device: "cpu" or "cuda".
        named: of NAMES.
    """
    return [
        peer
        for peer in PEERS
        if optimizer in peer.classes
        and storage in peer.storages
        and device in peer.devices
        and (peer.name in named if named else not peer.slow)
        and peer.installed
    ]


def ours(optimizer: str, storage: str, params: Sequence[Any], **options: Any) -> Step:
    """Our step over parameters that have gradients."""
    from .. import optim

    formats = STORAGES[storage].ours
    assert formats is not None, f"{OURS} has no {storage}"
    hyper = {**HYPER, **OWN_HYPER.get(optimizer, {}), **formats, **options}
    step: Step = getattr(optim, optimizer)(params, **hyper).step
    return step
