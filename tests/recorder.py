"""A CUDA graph without a GPU: keeps the launches and torch's operations of a step in place of doing them, to do them
again at every replay.

As with a graph, nothing of the host's part of a step runs at a replay, memory made while it is captured is the
recording's own, and all other memory is known by its place alone: what was freed in between is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from rlx_gpu.engine import capture, launch


@dataclass
class Place:
    """Where a tensor lies in memory that is not the recording's own."""

    storage: StorageWeakRef
    dtype: torch.dtype
    view: tuple[int, torch.Size, tuple[int, ...]]

    def tensor(self) -> torch.Tensor:
        """The tensor, unless its memory was freed."""
        assert not self.storage.expired(), "a replay reads memory that was freed"
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.view)


class Recorder(TorchDispatchMode):
    """What was captured; `replay` does it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Callable[..., Any], Any, Any, list[torch.Tensor]]] = []
        self.own: dict[int, torch.Tensor] = {}  # by the address of the memory, which stays alive

    @contextmanager
    def capture(self) -> Iterator[None]:
        """What runs inside is kept, not done; the engine takes it for a capture on the device that tensors are on."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(capture, "capturing", lambda: torch.device("cpu"))
            real = launch.launch

            def keep(kernel: Any, programs: Any, *arguments: Any, **constants: Any) -> None:
                self.done.append((real, self.known((kernel, programs, *arguments)), constants, []))

            patch.setattr(launch, "launch", keep)
            with self:
                yield

    def replay(self) -> None:
        """Does all that was captured, in order."""
        with torch.no_grad():
            for function, args, kwargs, outputs in self.done:
                result = function(*found(args), **found(kwargs))
                for old, new in zip(outputs, tensors_in(result) if outputs else (), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host reads what a graph would compute"
        named = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
        written = [named[one.name] for one in func._schema.arguments if one.alias_info and one.alias_info.is_write]
        others = [one for one in tensors_in(written) if self.address(one) not in self.own]
        if others:  # memory that is not the recording's own is written at replays only
            assert len(func._schema.returns) == 1, f"{func} writes to several tensors"
            self.done.append((func, self.known(args), self.known(kwargs), []))
            return written[0]
        result = func(*args, **kwargs)
        made = tensors_in(result)
        for one in made:
            if one.untyped_storage().data_ptr() not in map(self.address, tensors_in((args, kwargs))):
                self.own[self.address(one)] = one
        self.done.append((func, self.known(args), self.known(kwargs), made))
        return result

    def known(self, given: Any) -> Any:
        """The arguments, tensors of memory that is not the recording's own by their place."""
        return tree_map(self._known, given)

    def _known(self, one: Any) -> Any:
        if not isinstance(one, torch.Tensor) or self.address(one) in self.own:
            return one
        view = one.storage_offset(), one.size(), one.stride()
        return Place(StorageWeakRef(one.untyped_storage()), one.dtype, view)

    @staticmethod
    def address(tensor: torch.Tensor) -> int:
        """Of the memory that a tensor is a view of."""
        return tensor.untyped_storage().data_ptr()


def tensors_in(given: Any) -> list[torch.Tensor]:
    """All tensors of a structure."""
    return [one for one in tree_flatten(given)[0] if isinstance(one, torch.Tensor)]


def found(given: Any) -> Any:
    """A structure with tensors where places were."""
    return tree_map(lambda one: one.tensor() if isinstance(one, Place) else one, given)
