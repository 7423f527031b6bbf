"""The trait: optimizers keyed by parameter name, for any trainer. `rlx_gpu.AdamW` and its siblings are made here."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch._compile import _disable_dynamo

from .arrays import Arrays
from .engine.batch import Batch, Entry, Settings
from .engine.checks import check_grad, check_param
from .engine.engine import Engine
from .engine.state import STEP, State, Storage, apart, as_tensor, copied_scalars, layout, loaded_slot, read_scalars
from .kernels.formats import STATE_FORMATS
from .options import StepOptions
from .reference.by_name import ByName, LrScale, UseFallback
from .reference.checkpoint import load_parameters
from .reference.hyper import REQUIRED
from .reference.trait import FALLBACK_DOC, documentation, signature
from .table import TABLE, Algorithm

Item = tuple[str, tuple[int, ...], Any, Any]
OPTIONS_DOC = """\
    state_dtype ("float32" or "bfloat16"): format of the state.
    rounding ("nearest" or "stochastic"): of bfloat16 parameters.
    seed (int): of stochastic rounding; its bits depend on seed, step, name and element alone, so that a run repeats.
    lr_scale (mapping, callable or None): factor of lr by parameter name; 1 for names a mapping does not hold.
    skip_nonfinite (True or False): whether a NaN or infinity in any gradient of a call makes the call a no-op.
    max_grad_norm (a number in [0, inf] or None): what the norm of all gradients of a call is brought down to.
    device: where the state of NumPy parameters lives; a GPU if there is one, unless given."""


class Optimizer(StepOptions, ByName):
    """The base of every optimizer of the trait; `make_class` gives it an algorithm.

    Parameters and gradients are torch tensors, anything with `__dlpack__` (CuPy arrays: not copied), or NumPy arrays on
    the host (copied to the device and back if the device is a GPU). Every parameter counts its own steps t.
    """

    algorithm: ClassVar[Algorithm]

    def __init__(
        self,
        lr: Any = REQUIRED,
        *,
        state_dtype: str = "float32",
        rounding: str = "nearest",
        seed: int = 0,
        lr_scale: LrScale = None,
        use_fallback: UseFallback = None,
        skip_nonfinite: bool = False,
        max_grad_norm: float | None = None,
        device: str | torch.device | None = None,
        **hyper: Any,
    ) -> None:
        name = self.algorithm.name
        try:
            storage = Storage(state_dtype, rounding, seed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        self._use(Settings.resolved(self.algorithm, hyper if lr is REQUIRED else {"lr": lr, **hyper}, storage))
        self._choose(self.algorithm.reference, lr_scale, use_fallback)
        self.iteration = 0
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._engine = Engine(self.algorithm, skip_nonfinite=skip_nonfinite, max_grad_norm=max_grad_norm)
        self._entries: dict[str, Entry] = {}
        self._states: dict[str, State] = {}
        self._loaded: dict[str, tuple[int, dict[str, Any]]] = {}  # from a checkpoint, until the parameter is seen
        self._arrays = Arrays(self.device)
        self._stepped: set[str] = set()

    @property
    def hyper(self) -> dict[str, Any]:
        """The hyperparameters in force."""
        live = self._settings.lr
        return dict(self._settings.hyper) if live is None else {**self._settings.hyper, "lr": live}

    def step(self, name: str, shape: tuple[int, ...], param: Any, grad: Any, *, grad_scale: Any = 1.0) -> None:
        """Updates one parameter in place; see `step_batch`, which updates a whole model in one launch."""
        self.step_batch([(name, shape, param, grad)], grad_scale=grad_scale)

    @_disable_dynamo
    def step_batch(self, items: Iterable[Item], *, grad_scale: float | torch.Tensor = 1.0) -> None:
        """Updates parameters in place, each at most once an iteration; an error leaves everything untouched.

        Args:
            items: name, shape, parameter and gradient of each. float32, bfloat16 or float16; float64 on the CPU too.
            grad_scale: factor on every gradient, such as `global_grad_clip_scale` returns; a tensor stays on its
            device.

        Raises:
            TypeError: a parameter or gradient that is no array, sparse, complex or of another dtype.
            ValueError: one whose shape, device or memory does not fit, or a parameter stepped twice in an iteration.
        """
        entries, grads, returns = [], [], []
        seen: set[str] = set()
        for name, shape, param, grad in items:
            if not isinstance(name, str):
                raise TypeError(f"a parameter's name must be a string, got {name!r}")
            if name in seen or name in self._stepped:
                raise ValueError(f"parameter {name!r}: stepped twice without end_iteration in between")
            seen.add(name)
            tensor = self._arrays.tensor(name, "param", param, shape)
            check_param(name, tensor)
            gradient = self._arrays.tensor(name, "grad", grad, shape)
            check_grad(name, tensor, gradient)
            entries.append(self._entry(name, tensor))
            grads.append(gradient)
            if isinstance(param, np.ndarray) and tensor.device.type != "cpu":
                returns.append((param, tensor))
        states = [self._state(entry) for entry in entries]
        self._engine.step(Batch(entries, grads, states, self._groups()), grad_scale)
        torch.autograd.graph.increment_version([entry.param for entry in entries])
        for entry, state in zip(entries, states, strict=True):
            self._entries[entry.name] = entry
            self._states[entry.name] = state
            self._loaded.pop(entry.name, None)
        self._stepped |= seen
        for array, tensor in returns:
            torch.from_numpy(array).copy_(tensor)

    def end_iteration(self) -> None:
        """Closes an iteration: every parameter may be stepped again."""
        self.iteration += 1
        self._stepped.clear()

    def set_lr(self, lr: float | torch.Tensor | None) -> None:
        """Uses another learning rate from the next step on; one in a tensor on a GPU is read there at each step."""
        self._use(Settings.resolved(self.algorithm, {**self.hyper, "lr": lr}, self._settings.storage))

    def send_hyperparameters(self) -> None:
        """Sends a learning rate that was set to the device, for replays of steps that were captured in a CUDA graph."""
        self._engine.send_hyperparameters(self._groups())

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state: "<slot>/<name>" tensors, "step/<name>" counts, metadata under keys without a slash."""
        copied, live = self.algorithm.scalar_slots, copied_scalars(self.algorithm, list(self._states.values()))
        own = {"iteration": self.iteration, **asdict(self._settings.storage)}
        result = {**self.algorithm.signed, **own}
        for name, (step, slots) in self._loaded.items():
            result |= {f"{STEP}/{name}": step, **{f"{slot}/{name}": value.clone() for slot, value in slots.items()}}
        steps = read_scalars([state[STEP] for state in live])
        for name, state, step in zip(self._states, live, steps.tolist(), strict=True):
            own = {slot: value if slot in copied else value.clone() for slot, value in state.items() if slot != STEP}
            result |= {f"{STEP}/{name}": int(step), **{f"{slot}/{name}": value for slot, value in own.items()}}
        return result

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a copy of a state, this face's or the reference's, in full or, on an error, not at all.

        The storage options come from the state if it has them.

        Raises:
            ValueError: another optimizer's state; a slot missing, unknown or of another shape. Names the key.
            RuntimeError: a step was captured in a CUDA graph, which goes on reading the state that there is.
        """
        if self._engine.captured_states():
            raise RuntimeError(f"{self.algorithm.name}: captured steps read this state; load after forget_captures()")
        own = self._settings.storage
        state_dtype = str(np.asarray(state.get("state_dtype", own.state_dtype)))  # NumPy's files return 0-d arrays
        if state_dtype not in STATE_FORMATS:  # the reference's float64
            state_dtype = own.state_dtype
        rounding = str(np.asarray(state.get("rounding", own.rounding)))
        try:
            storage = Storage(state_dtype, rounding, int(state.get("seed", own.seed)))
        except ValueError as error:
            raise ValueError(f"state dict: {error}") from None

        def like(name: str, shape: tuple[int, ...]) -> State:
            found = layout(self.algorithm, self._settings_of(name).hyper, torch.empty(shape, device="meta"), storage)
            return {**{slot: torch.empty(()) for slot in found.scalars if slot != STEP}, **found.tensors}

        iteration, loaded = load_parameters(
            state,
            self.algorithm.name,
            init_state=like,
            shapes={name: tuple(entry.param.shape) for name, entry in self._entries.items()},
            read=lambda key, value: as_tensor(key, value).clone(),
            retired=getattr(self.algorithm.reference, "retired_slots", None),
            revision=self.algorithm.revision,
        )
        self._engine.forget()
        self._use(replace(self._settings, storage=storage))
        self._loaded = {name: (step, slots) for name, (_, step, slots) in loaded.items()}
        self._states.clear()
        self._entries.clear()
        self.iteration = iteration
        self._stepped.clear()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along: settings and state, but not the caller's parameters nor the engine."""
        steps = read_scalars([state[STEP] for state in self._states.values()])
        slots = [apart({slot: own[slot] for slot in own if slot != STEP}) for own in self._states.values()]
        live = dict(zip(self._states, zip(map(int, steps), slots, strict=True), strict=True))
        replaced = {"_entries": {}, "_states": {}, "_arrays": Arrays(self.device), "_loaded": {**self._loaded, **live}}
        kept = {key: value for key, value in self.__dict__.items() if key != "_engine"}
        options = {"skip_nonfinite": self._engine.skip_nonfinite, "max_grad_norm": self._engine.max_grad_norm}
        return {**kept, **replaced, **options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        options = {"skip_nonfinite": state.pop("skip_nonfinite"), "max_grad_norm": state.pop("max_grad_norm", None)}
        self._engine = Engine(self.algorithm, **options)
        self.__dict__.update(state)

    def _entry(self, name: str, param: torch.Tensor) -> Entry:
        """The parameter's entry, the same object as long as nothing about it has changed."""
        scale = self._factor(name)
        known = self._entries.get(name)
        if known is None:
            return Entry(name, param, group=int(self.use_fallback(name)), scale=scale, origin=origin(name))
        old = known.param
        if old.shape != param.shape:
            found, kept = tuple(param.shape), tuple(old.shape)
            raise ValueError(f"parameter {name!r}: shape {found} does not match its state's {kept}")
        if old.dtype != param.dtype:
            raise ValueError(f"parameter {name!r}: dtype {param.dtype} does not match its earlier steps' {old.dtype}")
        same = old.data_ptr() == param.data_ptr() and old.stride() == param.stride() and old.device == param.device
        if same and known.scale == scale:
            return known
        return Entry(name, param, group=known.group, scale=scale, origin=known.origin)

    def _use(self, settings: Settings) -> None:
        """Uses these settings from now on: for parameters in general, and for those that are sent to the fallback."""
        self._settings = settings
        self._fallback = replace(settings, hyper={**settings.hyper, "matrix": False})

    def _groups(self) -> list[Settings]:
        """The settings of parameters in general, and, where there is a fallback, of those that were sent to it."""
        if self._use_fallback is None and type(self).use_fallback is Optimizer.use_fallback:
            return [self._settings]
        return [self._settings, self._fallback]

    def _settings_of(self, name: str) -> Settings:
        return self._groups()[int(self.use_fallback(name))]

    def _state(self, entry: Entry) -> State:
        """The parameter's state: the live one, a checkpoint's brought to its place, or an empty one to be completed."""
        if entry.name not in self._loaded:
            return self._states.get(entry.name, {})
        step, slots = self._loaded[entry.name]
        settings = self._settings_of(entry.name)
        wanted = layout(self.algorithm, settings.hyper, entry.param, settings.storage)
        for key in (*wanted.tensors, *wanted.scalars):  # they hang on the parameter's format and memory order as well
            if key != STEP and key not in slots:
                found = sorted(slots)
                raise ValueError(f"parameter {entry.name!r}: its loaded state lacks slot {key!r}; it has {found}")
        state = {STEP: torch.tensor(float(step), dtype=torch.float32)}
        state |= {slot: slots[slot].reshape(()).double() for slot in wanted.scalars if slot != STEP}
        for key, like in wanted.tensors.items():
            state[key] = loaded_slot(f"{key}/{entry.name}", slots[key], like, entry.param)
        return state


class HessianOptimizer(Optimizer):
    """An optimizer whose algorithm keeps an estimate of the Hessian's diagonal."""

    @_disable_dynamo
    def update_hessian(self, name: str, estimate: Any) -> None:
        """Mixes an estimate of the Hessian's diagonal, shaped like the parameter, into the state of a parameter that
        has been stepped, here or before the checkpoint that was loaded.

        Raises:
            TypeError: an estimate that is no array, sparse, complex or of another dtype.
            ValueError: the parameter has not been stepped yet, or the estimate does not fit it.
        """
        if name not in self._entries and name not in self._loaded:
            raise ValueError(f"parameter {name!r}: step it once before update_hessian, so that its state has a place")
        known = self._entries.get(name)
        shape = known.param.shape if known else self._loaded[name][1]["hessian"].shape
        tensor = self._arrays.tensor(name, "estimate", estimate, shape)
        check_grad(name, known.param if known else tensor, tensor, "estimate")
        # Where the parameter has not been seen since it was loaded, the state lies with the estimate meanwhile.
        entry = known or Entry(name, torch.empty_like(tensor, memory_format=torch.contiguous_format))
        engine = self._engine if known else Engine(self.algorithm, skip_nonfinite=self._engine.skip_nonfinite)
        state = self._state(entry)
        engine.update_hessian(Batch([entry], [tensor], [state], [self._settings]))
        if known is None:
            step, slots = self._loaded[name]
            self._loaded[name] = step, {**slots, "hessian": state["hessian"]}


def origin(name: str) -> int:
    """Where a parameter's elements are counted from among all elements, for the bits of stochastic rounding."""
    return (zlib.crc32(name.encode()) & 0x7FFFFFFF) << 32


@functools.cache
def make_class(name: str) -> type[Optimizer]:
    """The trait's class of an algorithm, with its hyperparameters in the signature and the documentation."""
    algorithm = TABLE[name]
    base = HessianOptimizer if hasattr(algorithm.reference, "update_hessian") else Optimizer
    options = f"{OPTIONS_DOC}\n{FALLBACK_DOC}" if algorithm.of_matrices else OPTIONS_DOC
    members = {
        "__doc__": documentation(algorithm.reference, options + algorithm.memory_doc),
        "__module__": "rlx_gpu",
        "__signature__": signature(algorithm.reference, Optimizer.__init__),
        "algorithm": algorithm,
    }
    return type(name, (base,), members)
