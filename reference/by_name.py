"""What a caller of the trait chooses for single parameters, by their names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import ModuleType

from .hyper import Hyper
from .matrices import check_use_fallback

LR_SCALE = Hyper("lr_scale", 1.0, doc="factor of lr for one parameter")
LrScale = Mapping[str, float] | Callable[[str], float] | None
UseFallback = Collection[str] | Callable[[str], bool] | None


class ByName:
    """Factors of lr and the choice of the fallback; a subclass may answer by itself."""

    _lr_scale: LrScale
    _use_fallback: UseFallback

    def _choose(self, algorithm: ModuleType, lr_scale: LrScale, use_fallback: UseFallback) -> None:
        """Takes over what the constructor was given.

        Raises:
            TypeError: use_fallback for an algorithm without a fallback.
            ValueError: not of these types.
        """
        if not (lr_scale is None or isinstance(lr_scale, Mapping) or callable(lr_scale)):
            raise ValueError(f"{algorithm.NAME}: lr_scale must be a mapping, a callable or None, got {lr_scale!r}")
        check_use_fallback(algorithm, use_fallback)
        self._lr_scale, self._use_fallback = lr_scale, use_fallback

    def lr_scale(self, name: str) -> float:
        """The factor of lr for one parameter: the constructor's, or a subclass's own."""
        if self._lr_scale is None:
            return 1.0
        return self._lr_scale.get(name, 1.0) if isinstance(self._lr_scale, Mapping) else self._lr_scale(name)

    def use_fallback(self, name: str) -> bool:
        """Whether one parameter takes the fallback even as a matrix: the constructor's choice, or a subclass's own."""
        if self._use_fallback is None:
            return False
        return bool(self._use_fallback(name)) if callable(self._use_fallback) else name in self._use_fallback

    def _factor(self, name: str) -> float:
        """`lr_scale`, checked.

        Raises:
            ValueError: no number, or out of range; names the parameter.
        """
        try:
            factor: float = LR_SCALE.check(self.lr_scale(name))
        except ValueError as error:
            raise ValueError(f"parameter {name!r}: {error}") from None
        return factor
