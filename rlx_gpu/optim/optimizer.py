"""The torch face: every optimizer as a drop-in for `torch.optim`; torch's conventions and no mathematics."""

from __future__ import annotations

import operator
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from torch._compile import _disable_dynamo

from ..engine.batch import Batch, Entry, Settings
from ..engine.capture import refuse_capture
from ..engine.captured import Homes
from ..engine.checks import check_param
from ..engine.devices import is_live
from ..engine.engine import Engine
from ..engine.state import State, apart, copied_scalars
from ..options import StepOptions
from ..split import split_named
from ..table import Algorithm
from .checkpoint import into_place, loaded_state
from .groups import SWITCHES, CheckedGroup, by_name, check_keys, names_in, number, settings_from, without_switches
from .states import HeldStates


class Optimizer(StepOptions, torch.optim.Optimizer):
    """The base of every optimizer of this module; `make_class` gives it an algorithm.

    A step can be captured in a CUDA graph (`torch.cuda.graph`) if one like it has been taken before. Under replay steps
    are counted, a learning rate in a tensor on the device is live, and `send_hyperparameters` sends what else has
    changed, what schedulers write besides a learning rate included. SOAP and KronPSGD, whose launches depend on the
    step's number, refuse to be captured.

    With `fused=True`, torch's GradScaler sets the attributes `grad_scale`, by which gradients are divided, and
    `found_inf` for the time of a step, and `step` follows them. (Its argument of that name is a factor.)
    """

    algorithm: ClassVar[Algorithm]
    _engine: Engine
    _layout: tuple[list[torch.Tensor], list[Entry]] | None  # the groups' parameters and their entries, flat
    _sizes: list[int]  # of the groups
    _checked: dict[int, CheckedGroup]
    _held: HeldStates | None

    def __init__(
        self,
        params: Any,
        *positional: Any,
        state_dtype: str = "float32",
        rounding: str = "nearest",
        seed: int = 0,
        skip_nonfinite: bool = False,
        max_grad_norm: float | None = None,
        **hyper: Any,
    ) -> None:
        given = without_switches(self.algorithm, by_name(self.algorithm, positional, hyper))
        if self.algorithm.hidden_only:
            params = split_named(params)
        if not isinstance(params, (torch.Tensor, torch.nn.Module)):
            params = list(params)
        lr = given.get("lr")
        if isinstance(lr, torch.Tensor) and lr.numel() == 1:  # schedulers write into it
            value = 0.0 if is_live(lr) else number("lr", lr)
            defaults = {**self.algorithm.resolve({**given, "lr": value}), "lr": lr}
        else:
            defaults = self.algorithm.resolve(given)
        switches = {name: bool(hyper[name]) for name in SWITCHES if name in hyper}
        self._start(skip_nonfinite, max_grad_norm)
        storage = {"state_dtype": state_dtype, "rounding": rounding, "seed": seed}
        super().__init__(params, {**defaults, **storage, **switches})

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What torch's GradScaler asks before it leaves unscaling and skipping to `step`."""
        return bool(self.defaults.get("fused"))

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

    @_disable_dynamo
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
        try:
            with self._engine.lock:
                params, entries = self._flat()
                grads = [param.grad for param in params]
                batch = Batch(entries, grads, self._states(params, grads), self._all_settings())
                scaler = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
                torch.autograd.graph.increment_version(self._engine.step(batch, grad_scale, *scaler))
        except BaseException:
            for left in ("grad_scale", "found_inf"):  # by a scaler, which the error keeps from deleting them
                self.__dict__.pop(left, None)
            raise
        return loss

    def send_hyperparameters(self) -> None:
        """Sends hyperparameters that have changed in the groups, and `max_grad_norm`, to the device without a step: for
        replays of captured steps, which read them there.

        Raises:
            TypeError, ValueError: one out of range, or one that captured steps cannot follow; nothing has been sent.
        """
        with self._engine.lock:
            self._engine.send_hyperparameters(self._all_settings(), self._homes())

    def state_dict(self) -> dict[str, Any]:
        """The state in torch's format; a parameter's step count is a tensor of its own."""
        hooks, self._optimizer_state_dict_post_hooks = self._optimizer_state_dict_post_hooks, OrderedDict()
        try:
            saved: dict[str, Any] = super().state_dict()
        finally:
            self._optimizer_state_dict_post_hooks = hooks
        copies = copied_scalars(self.algorithm, list(saved["state"].values()))
        saved["state"] = dict(zip(saved["state"], copies, strict=True))
        saved["param_groups"] = [{**group, **self.algorithm.signed} for group in saved["param_groups"]]
        for hook in hooks.values():  # of the finished state
            changed = hook(self, saved)
            saved = saved if changed is None else changed
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state of this optimizer, or torch.optim's of the same algorithm, in full or, on an error, not at all.

        Every slot keeps the dtype that the groups' `state_dtype` names; a checkpoint without one (torch's) is converted
        to this optimizer's. Nothing is cast to the parameter's dtype. State that captured steps read is overwritten
        where it lies, and so is a learning rate in a tensor.

        Raises:
            ValueError: other groups or parameters, another optimizer's slots, a slot missing or of another shape; names
                the parameter. What captured steps could not follow.
        """
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            if changed is not None:
                state_dict = changed
        refuse_capture(f"{self.algorithm.name}: loading", "load before the capture")
        with self._engine.lock:
            groups, state = loaded_state(self.algorithm, self.param_groups, state_dict)
            captured = set(map(id, self._engine.captured_states()))
            if captured:
                self._load_into_place(groups, state, captured)
            self._engine.forget()
            self.__setstate__({"state": state, "param_groups": groups})
            if captured:
                self.send_hyperparameters()
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along; every number in memory of its own, which pickle would save whole."""
        kept = super().__getstate__()
        copies = copied_scalars(self.algorithm, list(kept["state"].values()), torch.device("cpu"))
        copies = [apart(one) if isinstance(one, dict) else one for one in copies]
        state = defaultdict(dict, zip(kept["state"], copies, strict=True))
        return {**kept, "state": state, "skip_nonfinite": self.skip_nonfinite, "max_grad_norm": self.max_grad_norm}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        options = own.pop("skip_nonfinite", False), own.pop("max_grad_norm", None)
        super().__setstate__(own)
        if not hasattr(self, "_engine"):
            self._start(*options)
        self._layout = None

    def _start(self, skip_nonfinite: bool, max_grad_norm: float | None) -> None:
        """What is not saved: the engine, and the flat view of the groups."""
        self._engine = Engine(self.algorithm, skip_nonfinite=skip_nonfinite, max_grad_norm=max_grad_norm)
        self._layout = None
        self._checked = {}
        self._held = None

    def _homes(self) -> Homes:
        """Where every parameter is at home: its group, and its state."""
        return {id(entry.param): (entry.group, self.state.get(entry.param)) for entry in self._flat()[1]}

    def _load_into_place(self, groups: list[dict[str, Any]], state: dict[Any, Any], captured: set[int]) -> None:
        """Writes what was loaded over the state that captured steps read, by id; on an error nothing."""
        copies = into_place(state, self.state, captured)
        for group, own in zip(groups, self.param_groups, strict=True):
            if is_live(own.get("lr")) and group["lr"] is not None:
                copies.append((own["lr"], torch.as_tensor(group["lr"]).reshape(own["lr"].shape)))
                group["lr"] = own["lr"]
        settings = [settings_from(self.algorithm, group, f"param_groups[{i}]") for i, group in enumerate(groups)]
        self._engine.check_replays(settings, self._homes())
        with torch.no_grad():
            for target, source in copies:
                target.copy_(source)

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
