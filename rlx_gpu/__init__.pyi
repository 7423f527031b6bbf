# fmt: off
"""Fused GPU optimizers: every algorithm in every storage format, in one launch, checked against a NumPy reference.

Written by `python -m rlx_gpu.bench.stubs`.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from rlx_gpu.matrix.newton_schulz import newton_schulz as newton_schulz
from rlx_gpu.norms import global_grad_clip_scale as global_grad_clip_scale
from rlx_gpu.norms import l2_norm as l2_norm
from rlx_gpu.optim.states import state_bytes as state_bytes
from rlx_gpu.reference.by_name import LrScale, UseFallback
from rlx_gpu.reference.newton_schulz import Triple
from rlx_gpu.split import split_parameters as split_parameters
from rlx_gpu.table import TABLE as TABLE
from rlx_gpu.trait import HessianOptimizer, Optimizer

from . import hessian as hessian
from . import optim as optim
from . import reference as reference

__version__: str

class SGD(Optimizer):
    """SGD with momentum, in the heavy-ball or Nesterov form."""
    def __init__(
        self, lr: float = 0.001, *, momentum: float = 0.0, dampening: float = 0.0, weight_decay: float = 0.0,
        nesterov: bool = False, state_dtype: Literal["float32", "bfloat16"] = "float32",
        rounding: Literal["nearest", "stochastic"] = "nearest", seed: int = 0, lr_scale: LrScale = None,
        skip_nonfinite: bool = False, max_grad_norm: float | None = None, device: str | torch.device | None = None
    ) -> None: ...

class Adam(Optimizer):
    """Adam: the gradient's moving average over the square root of its square's."""
    def __init__(
        self, lr: float = 0.001, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-08,
        weight_decay: float = 0.0, amsgrad: bool = False, state_dtype: Literal["float32", "bfloat16"] = "float32",
        rounding: Literal["nearest", "stochastic"] = "nearest", seed: int = 0, lr_scale: LrScale = None,
        skip_nonfinite: bool = False, max_grad_norm: float | None = None, device: str | torch.device | None = None
    ) -> None: ...

class AdamW(Optimizer):
    """AdamW: Adam whose weight decay bypasses the moments."""
    def __init__(
        self, lr: float = 0.001, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-08,
        weight_decay: float = 0.01, amsgrad: bool = False, state_dtype: Literal["float32", "bfloat16"] = "float32",
        rounding: Literal["nearest", "stochastic"] = "nearest", seed: int = 0, lr_scale: LrScale = None,
        skip_nonfinite: bool = False, max_grad_norm: float | None = None, device: str | torch.device | None = None
    ) -> None: ...

class NAdamW(Optimizer):
    """NAdamW: AdamW with Nesterov's look-ahead in the first moment."""
    def __init__(
        self, lr: float = 0.002, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-08,
        weight_decay: float = 0.01, momentum_decay: float | None = None,
        state_dtype: Literal["float32", "bfloat16"] = "float32", rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0, lr_scale: LrScale = None, skip_nonfinite: bool = False, max_grad_norm: float | None = None,
        device: str | torch.device | None = None
    ) -> None: ...

class RAdam(Optimizer):
    """RAdam: Adam that waits until its second moment is worth dividing by."""
    def __init__(
        self, lr: float = 0.001, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-08,
        weight_decay: float = 0.0, decoupled_weight_decay: bool = False, threshold: float = 5.0,
        state_dtype: Literal["float32", "bfloat16"] = "float32", rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0, lr_scale: LrScale = None, skip_nonfinite: bool = False, max_grad_norm: float | None = None,
        device: str | torch.device | None = None
    ) -> None: ...

class QHAdamW(Optimizer):
    """QHAdamW: AdamW whose moments are mixed with the gradient itself."""
    def __init__(
        self, lr: float = 0.001, *, betas: tuple[float, float] = (0.995, 0.999), nus: tuple[float, float] = (0.7, 1.0),
        eps: float = 1e-08, weight_decay: float = 0.01, state_dtype: Literal["float32", "bfloat16"] = "float32",
        rounding: Literal["nearest", "stochastic"] = "nearest", seed: int = 0, lr_scale: LrScale = None,
        skip_nonfinite: bool = False, max_grad_norm: float | None = None, device: str | torch.device | None = None
    ) -> None: ...

class Lion(Optimizer):
    """Lion: the sign of an interpolated momentum."""
    def __init__(
        self, lr: float = 0.0001, *, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0,
        state_dtype: Literal["float32", "bfloat16"] = "float32", rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0, lr_scale: LrScale = None, skip_nonfinite: bool = False, max_grad_norm: float | None = None,
        device: str | torch.device | None = None
    ) -> None: ...

class Sophia(HessianOptimizer):
    """Sophia: momentum over an estimate of the Hessian's diagonal, clipped."""
    def __init__(
        self, lr: float = 0.0001, *, betas: tuple[float, float] = (0.965, 0.99), gamma: float = 0.01, rho: float = 0.04,
        eps: float = 1e-12, weight_decay: float = 0.1, state_dtype: Literal["float32", "bfloat16"] = "float32",
        rounding: Literal["nearest", "stochastic"] = "nearest", seed: int = 0, lr_scale: LrScale = None,
        skip_nonfinite: bool = False, max_grad_norm: float | None = None, device: str | torch.device | None = None
    ) -> None: ...

class LAMB(Optimizer):
    """LAMB: AdamW whose step in each tensor is as long as the tensor."""
    def __init__(
        self, lr: float = 0.001, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-06,
        weight_decay: float = 0.01, bias_correction: bool = True,
        state_dtype: Literal["float32", "bfloat16"] = "float32", rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0, lr_scale: LrScale = None, skip_nonfinite: bool = False, max_grad_norm: float | None = None,
        device: str | torch.device | None = None
    ) -> None: ...

class MARS(Optimizer):
    """MARS: AdamW on a gradient whose variance the previous one reduces."""
    def __init__(
        self, lr: float = 0.003, *, betas: tuple[float, float] = (0.95, 0.99), eps: float = 1e-08,
        weight_decay: float = 0.0, gamma: float = 0.025, clip_c: bool = True,
        state_dtype: Literal["float32", "bfloat16"] = "float32", rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0, lr_scale: LrScale = None, skip_nonfinite: bool = False, max_grad_norm: float | None = None,
        device: str | torch.device | None = None
    ) -> None: ...

class Adafactor(Optimizer):
    """Adafactor: a matrix's second moment kept as its row and column means."""
    def __init__(
        self, lr: float | None = None, *, beta2_decay: float = -0.8, eps: tuple[float, float] = (1e-30, 0.001),
        clip_threshold: float = 1.0, weight_decay: float = 0.0, state_dtype: Literal["float32", "bfloat16"] = "float32",
        rounding: Literal["nearest", "stochastic"] = "nearest", seed: int = 0, lr_scale: LrScale = None,
        skip_nonfinite: bool = False, max_grad_norm: float | None = None, device: str | torch.device | None = None
    ) -> None: ...

class Muon(Optimizer):
    """Muon: momentum, orthogonalised, for matrices; AdamW or momentum for everything else."""
    def __init__(
        self, lr: float = 0.001, *, weight_decay: float = 0.0, momentum: float = 0.95, nesterov: bool = True,
        ns_coefficients: Literal["keller", "quintic", "polar_express", "cans"] | Sequence[Triple] = "keller",
        eps: float = 1e-07, ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw", "unit_rms", "spectral"] = "original",
        ndim_policy: Literal["fallback", "flatten", "batch"] = "fallback", split_sizes: Sequence[int] | None = None,
        ns_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16", matrix: bool = True,
        fallback: Literal["adamw", "sgd"] = "adamw", fallback_lr_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999), fallback_eps: float = 1e-08,
        state_dtype: Literal["float32", "bfloat16"] = "float32", rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0, lr_scale: LrScale = None, use_fallback: UseFallback = None, skip_nonfinite: bool = False,
        max_grad_norm: float | None = None, device: str | torch.device | None = None
    ) -> None: ...

class SOAP(Optimizer):
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""
    def __init__(
        self, lr: float = 0.003, *, betas: tuple[float, float] = (0.95, 0.95), shampoo_beta: float | None = None,
        eps: float = 1e-08, weight_decay: float = 0.01, precondition_frequency: int = 10, max_precond_dim: int = 10000,
        ndim_policy: Literal["fallback", "flatten", "batch"] = "fallback", matrix: bool = True, stagger: bool = True,
        state_dtype: Literal["float32", "bfloat16"] = "float32", rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0, lr_scale: LrScale = None, use_fallback: UseFallback = None, skip_nonfinite: bool = False,
        max_grad_norm: float | None = None, device: str | torch.device | None = None
    ) -> None: ...

class KronPSGD(Optimizer):
    """KronPSGD: momentum whitened by a Kronecker-factored preconditioner that is itself learned, without inverses."""
    def __init__(
        self, lr: float = 0.001, *, momentum: float = 0.9, weight_decay: float = 0.0, precond_lr: float = 0.1,
        precond_beta: float = 0.9, clip_update_rms: float = 1.1, max_precond_dim: int = 8192,
        max_precond_skew: float = 1.0, ndim_policy: Literal["fallback", "flatten", "batch"] = "fallback",
        matrix: bool = True, state_dtype: Literal["float32", "bfloat16"] = "float32",
        rounding: Literal["nearest", "stochastic"] = "nearest", seed: int = 0, lr_scale: LrScale = None,
        use_fallback: UseFallback = None, skip_nonfinite: bool = False, max_grad_norm: float | None = None,
        device: str | torch.device | None = None
    ) -> None: ...
