"""The trait: optimizers keyed by parameter name, for any trainer. `rlx_gpu.AdamW` and its siblings are made here."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from .arrays import Arrays, copied_slot
from .batch import Batch, Entry, Settings
from .checks import check_grad, check_name, check_param
from .engine import Engine
from .reference.by_name import ByName, LrScale, UseFallback
from .reference.checkpoint import load_parameters
from .reference.hyper import REQUIRED
from .reference.trait import FALLBACK_DOC, SKIP_NONFINITE, documentation, signature
from .state import STATE_DTYPES, STEP, State, Storage, loaded_slot
from .table import TABLE, Algorithm

Item = tuple[str, tuple[int, ...], Any, Any]
OPTIONS_DOC = """\
    state_dtype ("float32" or "bfloat16"): format of the state.
    rounding ("nearest" or "stochastic"): of bfloat16 parameters.
    seed (int): of stochastic rounding; its bits depend on seed, step, name and element alone, so that a run repeats.
    lr_scale (mapping, callable or None): factor of lr by parameter name; 1 for names a mapping does not hold.
    skip_nonfinite (True or False): whether a NaN or infinity in any gradient of a call makes the call a no-op.
    device: where the state of NumPy parameters lives; a GPU if there is one, unless given."""


class Optimizer(ByName):
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
        device: str | torch.device | None = None,
        **hyper: Any,
    ) -> None:
        name = self.algorithm.name
        resolved = self.algorithm.resolve(hyper if lr is REQUIRED else {"lr": lr, **hyper})
        try:
            self._settings = Settings(resolved, Storage(state_dtype, rounding, seed))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        self._choose(self.algorithm.reference, lr_scale, use_fallback)
        self.iteration = 0
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._engine = Engine(self.algorithm, skip_nonfinite=SKIP_NONFINITE.check(skip_nonfinite))
        self._entries: dict[str, Entry] = {}
        self._states: dict[str, State] = {}
        self._loaded: dict[str, tuple[int, dict[str, Any]]] = {}  # from a checkpoint, until the parameter is seen
        self._arrays = Arrays(self.device)
        self._stepped: set[str] = set()

    @property
    def hyper(self) -> dict[str, Any]:
        """The hyperparameters in force."""
        return dict(self._settings.hyper)

    def step(self, name: str, shape: tuple[int, ...], param: Any, grad: Any, *, grad_scale: Any = 1.0) -> None:
        """Updates one parameter in place; see `step_batch`, which updates a whole model in one launch."""
        self.step_batch([(name, shape, param, grad)], grad_scale=grad_scale)

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
        names, entries, grads, returns = [], [], [], []
        seen: set[str] = set()
        for name, shape, param, grad in items:
            check_name(name)
            if name in seen or name in self._stepped:
                raise ValueError(f"parameter {name!r}: stepped twice without end_iteration in between")
            seen.add(name)
            tensor = self._arrays.tensor(name, "param", param, shape)
            check_param(name, tensor)
            gradient = self._arrays.tensor(name, "grad", grad, shape)
            check_grad(name, tensor, gradient)
            names.append(name)
            entries.append(self._entry(name, tensor))
            grads.append(gradient)
            if isinstance(param, np.ndarray) and tensor.device.type != "cpu":
                returns.append((param, tensor))
        states = [self._state(entry) for entry in entries]
        self._engine.step(tuple(names), Batch(entries, grads, states, self._groups()), grad_scale)
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

    def set_lr(self, lr: float | None) -> None:
        """Uses another learning rate from the next step on."""
        hyper = self.algorithm.resolve({**self._settings.hyper, "lr": lr})
        self._settings = Settings(hyper, self._settings.storage)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state: "<slot>/<name>" tensors, "step/<name>" counts, metadata under keys without a slash."""
        self._engine.settle()
        storage = self._settings.storage
        result: dict[str, Any] = {"optimizer": self.algorithm.name, "iteration": self.iteration}
        result |= {"state_dtype": storage.state_dtype, "rounding": storage.rounding, "seed": storage.seed}
        for name, (step, slots) in self._loaded.items():
            result |= {f"{STEP}/{name}": step, **{f"{slot}/{name}": value.clone() for slot, value in slots.items()}}
        for name, state in self._states.items():
            result[f"{STEP}/{name}"] = int(state[STEP])
            result |= {f"{slot}/{name}": value.clone() for slot, value in state.items() if slot != STEP}
        return result

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a copy of a state, this face's or the reference's, in full or, on an error, not at all.

        The storage options come from the state if it has them.

        Raises:
            ValueError: another optimizer's state; a slot missing, unknown or of another shape. Names the key.
        """
        own = self._settings.storage
        state_dtype = str(np.asarray(state.get("state_dtype", own.state_dtype)))  # NumPy's files return 0-d arrays
        if state_dtype not in STATE_DTYPES:  # the reference's float64
            state_dtype = own.state_dtype
        rounding = str(np.asarray(state.get("rounding", own.rounding)))
        try:
            storage = Storage(state_dtype, rounding, int(state.get("seed", own.seed)))
        except ValueError as error:
            raise ValueError(f"state dict: {error}") from None
        iteration, loaded = load_parameters(
            state,
            self.algorithm.name,
            init_state=lambda name, shape: self.algorithm.reference.init_state(shape, **self._settings_of(name).hyper),
            shapes={name: tuple(entry.param.shape) for name, entry in self._entries.items()},
            read=copied_slot,
        )
        self._engine.forget()
        self._settings = Settings(self._settings.hyper, storage)
        self._loaded = {name: (step, slots) for name, (_, step, slots) in loaded.items()}
        self._states.clear()
        self._entries.clear()
        self.iteration = iteration
        self._stepped.clear()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along: settings and state, but not the caller's parameters nor the engine."""
        self._engine.settle()
        live = {
            name: (int(state[STEP]), {slot: value for slot, value in state.items() if slot != STEP})
            for name, state in self._states.items()
        }
        replaced = {"_entries": {}, "_states": {}, "_arrays": Arrays(self.device), "_loaded": {**self._loaded, **live}}
        kept = {key: value for key, value in self.__dict__.items() if key != "_engine"}
        return {**kept, **replaced, "skip_nonfinite": self._engine.skip_nonfinite}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        self._engine = Engine(self.algorithm, skip_nonfinite=state.pop("skip_nonfinite"))
        self.__dict__.update(state)

    def _entry(self, name: str, param: torch.Tensor) -> Entry:
        """The parameter's entry, the same object as long as nothing about it has changed."""
        scale = self._factor(name)
        known = self._entries.get(name)
        if known is None:
            return Entry(name, param, group=int(self.use_fallback(name)), scale=scale, origin=origin(name))
        old = known.param
        if old.shape != param.shape:
            raise ValueError(
                f"parameter {name!r}: shape {tuple(param.shape)} does not match its state's {tuple(old.shape)}"
            )
        if old.dtype != param.dtype:
            raise ValueError(f"parameter {name!r}: dtype {param.dtype} does not match its earlier steps' {old.dtype}")
        same = old.data_ptr() == param.data_ptr() and old.stride() == param.stride() and old.device == param.device
        if same and known.scale == scale:
            return known
        return Entry(name, param, group=known.group, scale=scale, origin=known.origin)

    def _groups(self) -> list[Settings]:
        """The settings of parameters in general, and, where there is a fallback, of those that were sent to it."""
        if self._use_fallback is None and type(self).use_fallback is Optimizer.use_fallback:
            return [self._settings]
        return [self._settings, Settings({**self._settings.hyper, "matrix": False}, self._settings.storage)]

    def _settings_of(self, name: str) -> Settings:
        return self._groups()[int(self.use_fallback(name))]

    def _state(self, entry: Entry) -> State:
        """The parameter's state: the live one, a checkpoint's brought to its place, or an empty one to be completed."""
        if entry.name not in self._loaded:
            return self._states.get(entry.name, {})
        step, slots = self._loaded[entry.name]
        hyper, storage = self._settings_of(entry.name).hyper, self._settings.storage
        state = {
            slot: loaded_slot(self.algorithm, f"{slot}/{entry.name}", slot, value, entry.param, hyper, storage)
            for slot, value in slots.items()
        }
        return {STEP: torch.tensor(float(step), dtype=torch.float32), **state}


class HessianOptimizer(Optimizer):
    """An optimizer whose algorithm keeps an estimate of the Hessian's diagonal."""

    def update_hessian(self, name: str, estimate: Any) -> None:
        """Mixes an estimate of the Hessian's diagonal, shaped like the parameter, into the state of a parameter that
        has been stepped, here or before the checkpoint that was loaded.

        Raises:
            TypeError: an estimate that is no array, sparse, complex or of another dtype.
            ValueError: the parameter has not been stepped yet, or the estimate does not fit it.
        """
        if name in self._entries:
            entry = self._entries[name]
            tensor = self._arrays.tensor(name, "estimate", estimate, entry.param.shape)
            check_grad(name, entry.param, tensor, "estimate")
            self._engine.update_hessian(Batch([entry], [tensor], [self._states[name]], [self._settings]))
        elif name in self._loaded:  # its parameter has not been seen; the state lies with the estimate meanwhile
            step, slots = self._loaded[name]
            tensor = self._arrays.tensor(name, "estimate", estimate, slots["hessian"].shape)
            check_grad(name, tensor, tensor, "estimate")
            entry = Entry(name, torch.empty_like(tensor, memory_format=torch.contiguous_format))
            state = self._state(entry)
            self._engine.update_hessian(Batch([entry], [tensor], [state], [self._settings]))
            self._loaded[name] = step, {slot: state[slot] for slot in slots}
        else:
            raise ValueError(f"parameter {name!r}: step it once before update_hessian, so that its state has a place")


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
