"""Any reference as an optimizer keyed by parameter name, on NumPy arrays."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .arrays import Shape, State
from .by_name import ByName, LrScale, UseFallback
from .checkpoint import FIRST, load_parameters, signed
from .formats import round_to
from .hyper import REQUIRED, Hyper, resolve, scaled
from .matrices import has_fallback
from .norms import global_grad_clip_scale, has_nonfinite

SKIP_NONFINITE = Hyper("skip_nonfinite", False, kind="bool")
MAX_GRAD_NORM = Hyper("max_grad_norm", None, interval="[0, inf]", optional=True)
STATE_DTYPES = ("float64", "float32", "bfloat16")
ROUNDINGS = ("nearest", "stochastic")
OPTIONS_DOC = """\
    state_dtype ("float64", "float32" or "bfloat16"): format the state is rounded to after every step.
    rounding ("nearest" or "stochastic"): of bfloat16 parameters; without effect here, as NumPy has none.
    seed (int): of stochastic rounding.
    lr_scale (mapping, callable or None): factor of lr by parameter name; 1 for names a mapping does not hold.
    skip_nonfinite (True or False): whether a NaN or infinity in any gradient of a call makes the call a no-op.
    max_grad_norm (a number in [0, inf] or None): what the norm of all gradients of a call together is brought down to,
        as by `global_grad_clip_scale`."""
FALLBACK_DOC = """\
    use_fallback (collection of names, callable or None): parameters that take the fallback, whatever their shape."""


@dataclass
class Parameter:
    """What an optimizer remembers of one parameter; a loaded state may not know shape and dtype."""

    shape: Shape | None
    dtype: np.dtype[Any] | None
    step: int
    state: State


@dataclass
class Item:
    """One parameter's checked part of a step."""

    name: str
    param: NDArray[Any]
    grad: NDArray[Any]
    before: Parameter
    hyper: dict[str, Any]


class Optimizer(ByName):
    """The base of every optimizer of this package; `make_class` gives it an algorithm."""

    algorithm: ClassVar[ModuleType]

    def __init__(
        self,
        lr: Any = REQUIRED,
        *,
        state_dtype: str = "float64",
        rounding: str = "nearest",
        seed: int = 0,
        lr_scale: LrScale = None,
        use_fallback: UseFallback = None,
        skip_nonfinite: bool = False,
        max_grad_norm: float | None = None,
        **hyper: Any,
    ) -> None:
        name = self.algorithm.NAME
        self.hyper = resolve(self.algorithm.HYPERPARAMETERS, hyper if lr is REQUIRED else {"lr": lr, **hyper}, name)
        if hasattr(self.algorithm, "check"):
            self.algorithm.check(self.hyper)
        for option, value, allowed in (("state_dtype", state_dtype, STATE_DTYPES), ("rounding", rounding, ROUNDINGS)):
            if value not in allowed:
                raise ValueError(f"{name}: {option} must be one of {', '.join(allowed)}, got {value!r}")
        if type(seed) is not int or not 0 <= seed < 2**63:  # a bool is an int too
            raise ValueError(f"{name}: seed must be an integer in [0, 2**63), got {seed!r}")
        self._choose(self.algorithm, lr_scale, use_fallback)
        self.state_dtype = state_dtype
        self.rounding = rounding
        self.seed = seed
        self.skip_nonfinite = SKIP_NONFINITE.check(skip_nonfinite)
        self.max_grad_norm = MAX_GRAD_NORM.check(max_grad_norm)
        self.iteration = 0
        self._parameters: dict[str, Parameter] = {}
        self._stepped: set[str] = set()

    def step(self, name: str, shape: Shape, param: NDArray[Any], grad: NDArray[Any]) -> None:
        """Update one parameter in place; see `step_batch`."""
        self.step_batch([(name, shape, param, grad)])

    def step_batch(self, items: Iterable[tuple[str, Shape, NDArray[Any], NDArray[Any]]]) -> None:
        """Update parameters in place, each at most once an iteration; an error leaves everything untouched.

        A call that skip_nonfinite skips leaves parameters, state and step counts alone, but has used up the iteration.

        Args:
            items: name, shape, parameter and gradient of each; NumPy arrays of that shape in float16, float32 or
                float64, computed in float64 and stored back in the parameter's format.

        Raises:
            TypeError: not a NumPy array, or not of those formats.
            ValueError: another shape or format than in the parameter's earlier steps, a parameter that is read-only or
                was stepped in this iteration already.
        """
        checked: dict[str, Item] = {}
        for name, shape, param, grad in items:
            if name in checked or name in self._stepped:
                raise ValueError(f"parameter {name!r}: stepped twice without end_iteration in between")
            checked[name] = self._check(name, shape, param, grad)
        self._stepped.update(checked)
        if self.skip_nonfinite and has_nonfinite(item.grad for item in checked.values()):
            return
        scale = 1.0
        if self.max_grad_norm is not None:
            scale = global_grad_clip_scale((item.grad for item in checked.values()), self.max_grad_norm)
        updates = [(item, *self._updated(item, scale)) for item in checked.values()]
        for item, param, state in updates:
            with np.errstate(over="ignore"):
                item.param[...] = param
            self._parameters[item.name] = Parameter(param.shape, item.param.dtype, item.before.step + 1, state)

    def end_iteration(self) -> None:
        """Close an iteration: every parameter may be stepped again."""
        self.iteration += 1
        self._stepped.clear()

    def set_lr(self, lr: float | None) -> None:
        """Use another learning rate from the next step on.

        Raises:
            ValueError: one that the constructor would refuse.
        """
        self.hyper = resolve(self.algorithm.HYPERPARAMETERS, {**self.hyper, "lr": lr}, self.algorithm.NAME)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state: "<slot>/<name>" arrays, "step/<name>" counts, "optimizer" and "iteration"."""
        state = signed(self.algorithm.NAME, getattr(self.algorithm, "REVISION", FIRST))
        state["iteration"] = self.iteration
        for name, parameter in self._parameters.items():
            state[f"step/{name}"] = parameter.step
            state.update({f"{slot}/{name}": value.copy() for slot, value in parameter.state.items()})
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a copy of a state, in full or, on an error, not at all.

        Raises:
            ValueError: another optimizer's state; a slot missing, unknown or of another shape. Names the key.
        """
        iteration, loaded = load_parameters(
            state,
            self.algorithm.NAME,
            init_state=self._init_state,
            shapes={name: parameter.shape for name, parameter in self._parameters.items()},
            retired=getattr(self.algorithm, "retired_slots", None),
            revision=getattr(self.algorithm, "REVISION", FIRST),
        )
        self._parameters = {
            name: Parameter(shape, None, step, self._rounded(slots)) for name, (shape, step, slots) in loaded.items()
        }
        self.iteration = iteration
        self._stepped.clear()

    def _check(self, name: str, shape: Shape, param: NDArray[Any], grad: NDArray[Any]) -> Item:
        """One item of a batch with all that its update needs, or an error that names the parameter."""
        if not isinstance(name, str):
            raise TypeError(f"parameter names are strings, got {name!r}")
        shape = tuple(operator.index(size) for size in shape)
        _check_array(name, "param", param, shape)
        _check_array(name, "grad", grad, shape)
        if not param.flags.writeable:
            raise ValueError(f"parameter {name!r}: param is read-only")
        before = self._parameter(name, shape)
        if before.dtype is not None and before.dtype != param.dtype:
            raise ValueError(f"parameter {name!r}: param is {param.dtype}, but was {before.dtype} in earlier steps")
        return Item(name, param, grad, before, scaled(self._hyper_of(name), self._factor(name)))

    def _hyper_of(self, name: str) -> dict[str, Any]:
        """The hyperparameters of one parameter, before its factor of lr."""
        return {**self.hyper, "matrix": False} if self.use_fallback(name) else self.hyper

    def _init_state(self, name: str, shape: Shape) -> State:
        """One parameter's state before its first step."""
        state: State = self.algorithm.init_state(shape, **self._hyper_of(name))
        return state

    def _parameter(self, name: str, shape: Shape) -> Parameter:
        """What is remembered of a parameter, or a fresh start."""
        known = self._parameters.get(name)
        if known is None:
            return Parameter(shape, None, 0, self._init_state(name, shape))
        if known.shape not in (None, shape):
            raise ValueError(f"parameter {name!r}: shape {shape} does not match its state's {known.shape}")
        return known

    def _updated(self, item: Item, grad_scale: float) -> tuple[NDArray[Any], State]:
        """The parameter and its state after a step, in float64; NaN and infinity pass through quietly."""
        with np.errstate(all="ignore"):
            param, state = self.algorithm.update(
                item.param.astype(np.float64),
                grad_scale * item.grad.astype(np.float64),
                item.before.state,
                item.before.step + 1,
                **item.hyper,
            )
        return np.asarray(param), self._rounded(state)

    def _rounded(self, state: State) -> State:
        """A state in the format that this optimizer keeps, or the wider one that the algorithm wants for a slot."""
        wide = "float32" if self.state_dtype == "bfloat16" else self.state_dtype
        formats = dict.fromkeys(getattr(self.algorithm, "FULL_PRECISION_SLOTS", ()), wide)
        formats |= dict.fromkeys(getattr(self.algorithm, "SCALAR_SLOTS", ()), "float64")
        return {slot: round_to(value, formats.get(slot, self.state_dtype)) for slot, value in state.items()}


class HessianOptimizer(Optimizer):
    """An optimizer whose algorithm keeps an estimate of the Hessian's diagonal."""

    def update_hessian(self, name: str, estimate: NDArray[Any]) -> None:
        """Mix an estimate of the Hessian's diagonal into one parameter's state, before its first step or any later one.

        With skip_nonfinite an estimate that holds a NaN or infinity is ignored.

        Args:
            name: the parameter's.
            estimate: an array of the parameter's shape, in float16, float32 or float64.

        Raises:
            TypeError: not a NumPy array, or not of those formats.
            ValueError: another shape than the parameter's.
        """
        _check_array(name, "estimate", estimate, np.shape(estimate))
        parameter = self._parameter(name, estimate.shape)
        if self.skip_nonfinite and has_nonfinite([estimate]):
            return
        with np.errstate(all="ignore"):
            curvature = estimate.astype(np.float64)
            state = self.algorithm.update_hessian(parameter.state, curvature, betas=self.hyper["betas"])
        self._parameters[name] = Parameter(estimate.shape, parameter.dtype, parameter.step, self._rounded(state))


def _check_array(name: str, what: str, value: Any, shape: Shape) -> None:
    """Refuse all but a NumPy array of this shape in a float format."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"parameter {name!r}: {what} must be a NumPy array, got {type(value).__name__}")
    if value.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"parameter {name!r}: {what} must be float16, float32 or float64, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"parameter {name!r}: {what} has shape {value.shape}, expected {shape}")


def make_class(algorithm: ModuleType, package: str) -> type[Optimizer]:
    """The optimizer class of a reference module, with its hyperparameters in the signature and the documentation."""
    base = HessianOptimizer if hasattr(algorithm, "update_hessian") else Optimizer
    members = {
        "__doc__": documentation(
            algorithm, f"{OPTIONS_DOC}\n{FALLBACK_DOC}" if has_fallback(algorithm) else OPTIONS_DOC
        ),
        "__module__": package,
        "__signature__": signature(algorithm, Optimizer.__init__),
        "algorithm": algorithm,
    }
    return type(algorithm.NAME, (base,), members)


def signature(
    algorithm: ModuleType, constructor: Callable[..., None], *leading: inspect.Parameter
) -> inspect.Signature:
    """A constructor's signature: the algorithm's hyperparameters, then the keyword-only options it has a use for.

    By position it takes lr alone, or with `leading` parameters all hyperparameters, as torch's constructors do.
    """
    hypers: tuple[Hyper, ...] = algorithm.HYPERPARAMETERS
    keyword, either = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    declared = [
        inspect.Parameter(hyper.name, either if leading or hyper.name == "lr" else keyword, default=hyper.default)
        for hyper in hypers
    ]
    options = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.kind is keyword and (parameter.name != "use_fallback" or has_fallback(algorithm))
    ]
    return inspect.Signature([*leading, *declared, *options])


def documentation(algorithm: ModuleType, options: str) -> str:
    """An optimizer's docstring: its rule, its hyperparameters, the options of the face, its state and its source."""
    rule, _, rest = (inspect.getdoc(algorithm.update) or "").partition("\n\nArgs:\n")
    _, slots, notes = rest.partition("State slots")
    args = "\n".join(f"    {hyper.name} ({hyper.allowed}): {hyper.doc}." for hyper in algorithm.HYPERPARAMETERS)
    return f"{algorithm.__doc__}\n\n{rule}\n\nArgs:\n{args}\n{options}\n\n{slots}{notes}\n"
