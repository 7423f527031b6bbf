"""The torch face: every optimizer as a drop-in for `torch.optim`; torch's conventions and no mathematics."""

from __future__ import annotations

import functools
import inspect
import operator
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch.optim.optimizer import required

from ..engine.batch import Batch, Entry, Settings
from ..engine.checks import check_grad, check_param
from ..engine.devices import is_live
from ..engine.engine import Engine
from ..engine.state import State, apart, copied_scalars
from ..reference.hyper import REQUIRED
from ..reference.trait import SKIP_NONFINITE, documentation, signature
from ..split import split_named
from ..table import TABLE, Algorithm
from .checkpoint import OPTIMIZER, loaded_state
from .groups import CheckedGroup, check_keys, names_in, without_switches

PARAMS_DOC = """\
    params: parameters, named parameters, or groups of them as dicts, as in torch.optim; every hyperparameter,
        state_dtype, rounding and seed can be set per group."""
SPLIT_DOC = """
        A module, or named parameters that are in no group, are split as by `rlx_gpu.split_parameters`."""
OPTIONS_DOC = """
    state_dtype ("float32" or "bfloat16"): format of the state.
    rounding ("nearest" or "stochastic"): of bfloat16 parameters.
    seed (int): of stochastic rounding; its bits depend on seed, step and the element's place in the model alone.
    skip_nonfinite (True or False): whether a NaN or infinity in any gradient makes `step` a no-op, on the device."""


class Optimizer(torch.optim.Optimizer):
    """The base of every optimizer of this module; `make_class` gives it an algorithm.

    `foreach` and `fused` are accepted and change nothing; torch's other switches are accepted if False.
    """

    algorithm: ClassVar[Algorithm]
    skip_nonfinite: bool
    _engine: Engine
    _layout: tuple[list[torch.Tensor], list[Entry]] | None  # the groups' parameters and their entries, flat
    _sizes: list[int]  # of the groups
    _checked: dict[int, CheckedGroup]
    _held: HeldStates | None

    def __init__(
        self,
        params: Any,
        lr: Any = REQUIRED,
        *,
        state_dtype: str = "float32",
        rounding: str = "nearest",
        seed: int = 0,
        skip_nonfinite: bool = False,
        **hyper: Any,
    ) -> None:
        given = without_switches(self.algorithm, hyper if lr is REQUIRED else {"lr": lr, **hyper})
        if self.algorithm.hidden_only:
            params = split_named(params)
        if not isinstance(params, (torch.Tensor, torch.nn.Module)):
            params = list(params)
        (declared,) = [one.default for one in self.algorithm.hyperparameters if one.name == "lr"]
        own_lrs = lr is REQUIRED is declared and [group.get("lr") for group in params if isinstance(group, dict)]
        if own_lrs and None not in own_lrs:
            defaults = {**self.algorithm.resolve({**given, "lr": 0.0}), "lr": required}
        else:
            defaults = self.algorithm.resolve({**given, "lr": 0.0} if is_live(given.get("lr")) else given)
        if isinstance(lr, torch.Tensor):
            defaults["lr"] = lr  # schedulers write into it
        self.skip_nonfinite = SKIP_NONFINITE.check(skip_nonfinite)
        self._start()
        super().__init__(params, {**defaults, "state_dtype": state_dtype, "rounding": rounding, "seed": seed})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; hyperparameters it does not set come from the constructor.

        Raises:
            TypeError, ValueError: a hyperparameter out of range or misspelt, a parameter that cannot be stepped. The
                optimizer keeps the groups it had.
        """
        if isinstance(param_group, dict):
            check_keys(self.algorithm, param_group, self.defaults)
        super().add_param_group(param_group)
        try:
            group, index = self.param_groups[-1], len(self.param_groups) - 1
            if len(set(map(id, group["params"]))) < len(group["params"]):
                raise ValueError(f"{self.algorithm.name}: a group holds the same parameter twice")
            self._settings_of(group, index)
            for name, param in zip(names_in(group, index), group["params"], strict=True):
                check_param(name, param)
        except BaseException:
            self.param_groups.pop()
            raise
        self._layout = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, grad_scale: float | torch.Tensor = 1.0) -> Any:
        """Updates every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss.
            grad_scale: factor on every gradient, such as `global_grad_clip_scale` returns; a tensor stays on its
            device.

        Returns:
            The closure's loss, or None.

        Raises:
            TypeError, ValueError: a gradient, parameter, state or hyperparameter that does not fit, by name; nothing
                has been changed then.
        """
        loss = None
        if closure is not None:
            if not callable(closure):
                raise TypeError(f"closure must be callable, got {type(closure).__name__}; did you mean grad_scale=?")
            with torch.enable_grad():
                loss = closure()
        params, entries = self._flat()
        grads = [param.grad for param in params]
        batch = Batch(entries, grads, self._states(params, grads), self._all_settings())
        torch.autograd.graph.increment_version(self._engine.step(batch, grad_scale))
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state in torch's format; a parameter's step count is a tensor of its own."""
        hooks, self._optimizer_state_dict_post_hooks = self._optimizer_state_dict_post_hooks, OrderedDict()
        try:
            saved: dict[str, Any] = super().state_dict()
        finally:
            self._optimizer_state_dict_post_hooks = hooks
        copies = copied_scalars(self.algorithm, list(saved["state"].values()))
        saved["state"] = dict(zip(saved["state"], copies, strict=True))
        saved["param_groups"] = [{**group, OPTIMIZER: self.algorithm.name} for group in saved["param_groups"]]
        for hook in hooks.values():  # of the finished state
            changed = hook(self, saved)
            saved = saved if changed is None else changed
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state of this optimizer, or torch.optim's of the same algorithm, in full or, on an error, not at all.

        Every slot keeps the dtype that the groups' `state_dtype` names; a checkpoint without one (torch's) is converted
        to this optimizer's. Nothing is cast to the parameter's dtype.

        Raises:
            ValueError: other groups or parameters, another optimizer's slots, a slot missing or of another shape; names
                the parameter.
        """
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            if changed is not None:
                state_dict = changed
        groups, state = loaded_state(self.algorithm, self.param_groups, state_dict)
        self._engine.forget()
        self.__setstate__({"state": state, "param_groups": groups})
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along; every number in memory of its own, which pickle would save whole."""
        kept = super().__getstate__()
        copies = copied_scalars(self.algorithm, list(kept["state"].values()), torch.device("cpu"))
        copies = [apart(one) if isinstance(one, dict) else one for one in copies]
        state = defaultdict(dict, zip(kept["state"], copies, strict=True))
        return {**kept, "state": state, "skip_nonfinite": self.skip_nonfinite}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not hasattr(self, "_engine"):
            self._start()
        self._layout = None

    def _start(self) -> None:
        """What is not saved: the engine, and the flat view of the groups."""
        self._engine = Engine(self.algorithm, skip_nonfinite=self.skip_nonfinite)
        self._layout = None
        self._checked = {}
        self._held = None

    def _states(self, params: list[torch.Tensor], grads: list[Any]) -> list[State | None]:
        """The parameters' states, or None; looked up one by one only where `state` has changed."""
        if self._held and self._held.serves(self.state, params, grads):
            return self._held.states
        for param, grad in zip(params, grads, strict=True):
            if grad is not None:
                self.state[param]  # made by looking it up
        self._held = HeldStates(self.state, params)
        return self._held.states

    def _flat(self) -> tuple[list[torch.Tensor], list[Entry]]:
        """The parameters of all groups and their entries, the same objects as long as the groups hold the same."""
        own = [group["params"] for group in self.param_groups]
        sizes = list(map(len, own))
        if self._layout and sizes == self._sizes and all(map(operator.is_, chain(*own), self._layout[0])):
            return self._layout
        entries: list[Entry] = []
        origin = 0
        for index, group in enumerate(self.param_groups):
            for name, param in zip(names_in(group, index), group["params"], strict=True):
                entries.append(Entry(name, param, group=index, origin=origin))
                origin += -(-param.numel() // 8) * 8  # stochastic rounding draws its bits for 8 elements at once
        self._layout, self._sizes = (list(chain(*own)), entries), sizes
        return self._layout

    def _all_settings(self) -> list[Settings]:
        return [self._settings_of(group, index) for index, group in enumerate(self.param_groups)]

    def _settings_of(self, group: Mapping[str, Any], index: int) -> Settings:
        """A group's hyperparameters and storage, checked whenever one has changed."""
        if index not in self._checked:
            self._checked[index] = CheckedGroup(self.algorithm, f"param_groups[{index}]")
        return self._checked[index].current(group)


class HessianOptimizer(Optimizer):
    """An optimizer whose algorithm keeps an estimate of the Hessian's diagonal."""

    @torch.no_grad()
    def update_hessian(self, params: Sequence[torch.Tensor], estimates: Sequence[torch.Tensor]) -> None:
        """Mixes estimates of the Hessian's diagonal (see `rlx_gpu.hessian`) into the state of their parameters.

        Args:
            params: parameters of this optimizer.
            estimates: one for each, of its shape and device.

        Raises:
            TypeError, ValueError: a parameter that is not this optimizer's, an estimate that does not fit; by name.
        """
        params, estimates = list(params), list(estimates)
        if len(params) != len(estimates):
            raise ValueError(f"update_hessian: {len(params)} params but {len(estimates)} estimates")
        known = {id(entry.param): entry for entry in self._flat()[1]}
        entries: list[Entry] = []
        for index, param in enumerate(params):
            if id(param) not in known:
                label = f"update_hessian: params[{index}]"
                raise ValueError(f"{label} is not a parameter of this optimizer, or is given twice")
            entries.append(known.pop(id(param)))
        for entry, estimate in zip(entries, estimates, strict=True):
            check_grad(entry.name, entry.param, estimate, "estimate")
        states = [self.state[param] for param in params]
        self._engine.update_hessian(Batch(entries, estimates, states, self._all_settings()))


class HeldStates:
    """The states of flat parameters in their order, as long as an optimizer's `state` holds the same."""

    def __init__(self, state: Mapping[Any, State], params: list[torch.Tensor]) -> None:
        self.state, self.values, self.params = state, list(state.values()), params
        self.states = [state.get(param) for param in params]
        self.missing = [i for i, one in enumerate(self.states) if one is None]

    def serves(self, state: Mapping[Any, State], params: list[torch.Tensor], grads: list[Any]) -> bool:
        """Whether nothing has changed, and every parameter with a gradient has a state."""
        same = state is self.state and params is self.params and len(state) == len(self.values)
        if not same or any(grads[i] is not None for i in self.missing):
            return False
        return all(map(operator.is_, state.values(), self.values))


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of state that an optimizer keeps on its parameters' devices, step counts and other scalars left out."""
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor) and t.ndim)


@functools.cache
def make_class(name: str) -> type[Optimizer]:
    """The torch class of an algorithm, with its hyperparameters in the signature and the documentation."""
    algorithm = TABLE[name]
    base = HessianOptimizer if hasattr(algorithm.reference, "update_hessian") else Optimizer
    params = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    options = PARAMS_DOC + (SPLIT_DOC if algorithm.hidden_only else "") + OPTIONS_DOC + algorithm.memory_doc
    members = {
        "__doc__": documentation(algorithm.reference, options),
        "__module__": "rlx_gpu.optim",
        "__signature__": signature(algorithm.reference, Optimizer.__init__, params),
        "algorithm": algorithm,
    }
    return type(name, (base,), members)
