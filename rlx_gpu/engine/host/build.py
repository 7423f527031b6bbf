"""Compilation for the host, kept on disk: the next process loads what this one has compiled.

All is kept in a folder of the user's, `~/.cache/rlx-gpu` or what XDG_CACHE_HOME or NUMBA_CACHE_DIR say, in files named
by a hash of all that they depend on. Where nothing can be written, nothing is kept.

Of two functions of one name that different processes have compiled, a third that loads both would take one for the
other. So every function that is kept has a name that no other has: what is compiled in several ways is `named` by them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import numba

from .native import FUNCTION

_alive: list[Any] = []  # what is freed cannot be called


@functools.cache
def address_of(function: Callable[..., Any]) -> int:
    """The address of a function, compiled as a FUNCTION or loaded from disk."""
    made = compiled(function, lambda one, keep: numba.cfunc(FUNCTION, cache=keep, error_model="numpy")(one))
    _alive.append(made)
    return int(made.address)


def compiled(function: Any, compiler: Callable[[Any, bool], Any]) -> Any:
    """What a compiler makes of a function of this package or a generated one, told whether to keep it on disk.

    Numba keeps it beside the function's file: those of this package take on one in the cache folder.
    """
    if not function.__code__.co_filename.startswith(str(cache_folder() or "<nowhere>")):
        path = _kept(f"programs-{sources()}.py", f'"""Stands for rlx-gpu\'s programs for the CPU, {sources()}."""\n')
        if path is None:
            return compiler(function, False)
        code, name = function.__code__.replace(co_filename=path), function.__qualname__
        function = FunctionType(code, function.__globals__, None, None, function.__closure__)
        named(function, name)
    try:
        return compiler(function, True)
    except Exception:  # what is there cannot be read, or nothing kept; what is wrong with the function comes up again
        return compiler(function, False)


def generated(name: str, text: str, scope: Mapping[str, Any], depends_on: str) -> Callable[..., Any]:
    """The function `entry_KEY` of a module's text, KEY being a hash of it and of what it takes from `scope`, for which
    `depends_on` stands.
    """
    key = hashlib.sha256(f"{sources()}\n{depends_on}\n{text}".encode()).hexdigest()[:16]
    text = text.replace("KEY", key)
    path = _kept(f"{name}-{key}.py", text) or f"<{name}>"
    defined = {"__name__": __name__, **scope}
    exec(compile(text, path, "exec"), defined)
    entry: Callable[..., Any] = defined[f"entry_{key}"]
    return entry


def named(function: Any, name: str) -> Any:
    """The function under a name of its own, which compiled code is known by."""
    function.__name__ = function.__qualname__ = name
    return function


@functools.cache
def sources() -> str:
    """A hash of Numba's version and of the files that programs take their layout from."""
    package = Path(__file__).parents[2]
    rooms = [package / room for room in ("engine", "engine/host", "kernels")]
    files = sorted(file for room in rooms for file in room.glob("*.py"))
    return hashlib.sha256(b"".join([numba.__version__.encode(), *(file.read_bytes() for file in files)])).hexdigest()[
        :16
    ]


@functools.cache
def cache_folder() -> Path | None:
    """Where compiled functions are kept; None for a user who has no home."""
    chosen = numba.config.CACHE_DIR or os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(chosen) if chosen else Path.home() / ".cache") / "rlx-gpu"
    except RuntimeError:
        return None


def _kept(name: str, text: str) -> str | None:
    """The path of a file that holds the text; None if it cannot be written."""
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / name
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
                file.write(text)
            os.replace(file.name, path)
    except OSError:
        return None
    return str(path)
