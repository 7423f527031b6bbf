"""The classes of the torch face, one an algorithm, each made when it is first asked for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence

import torch
from torch._compile import _disable_dynamo

from ..engine.batch import Batch, Entry
from ..engine.checks import check_grad
from ..reference.trait import documentation, signature
from ..table import TABLE
from .optimizer import Optimizer

PARAMS_DOC = """\
    params: parameters, named parameters, or groups of them as dicts, as in torch.optim; every hyperparameter,
        state_dtype, rounding and seed can be set per group."""
SPLIT_DOC = """
        A module, or named parameters that are in no group, are split as by `rlx_gpu.split_parameters`."""
OPTIONS_DOC = """
    state_dtype ("float32" or "bfloat16"): format of the state.
    rounding ("nearest" or "stochastic"): of bfloat16 parameters.
    seed (int): of stochastic rounding; its bits depend on seed, step and the element's place in the model alone.
    skip_nonfinite (True or False): whether a NaN or infinity in any gradient makes `step` a no-op, on the device.
    max_grad_norm (a number in [0, inf] or None): what `step` brings the norm of all gradients down to, on the device,
        as torch.nn.utils.clip_grad_norm_ would; the norm is `grad_norm` afterwards. May be set between steps.
    fused (True or False): True has torch's GradScaler leave unscaling and skipping to `step`, so that it never waits
        for the device; changes nothing else, nor do `foreach` and `capturable`."""


class HessianOptimizer(Optimizer):
    """An optimizer whose algorithm keeps an estimate of the Hessian's diagonal."""

    @_disable_dynamo
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
        with self._engine.lock:
            states = [self.state[param] for param in params]
            self._engine.update_hessian(Batch(entries, estimates, states, self._all_settings()))


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
