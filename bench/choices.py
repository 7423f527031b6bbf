"""Options of the benches that name things: given once or several times, or in one word with commas."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import typer


def naming(flag: str, known: Iterable[str], usual: Iterable[str] | None = None) -> Any:
    """The option of a command, whose help lists what there is and what is taken if it is not given."""
    rest = f"; {', '.join(usual)} if not given" if usual is not None else ""
    return typer.Option(flag, help=f"Of {', '.join(dict.fromkeys(known))}{rest}. May be repeated.")


def chosen(flag: str, given: Iterable[str] | None, known: Collection[str], usual: Iterable[str]) -> list[str]:
    """The names given, in any case, as they are known; the usual ones if none is given.

    Raises:
        typer.BadParameter: an unknown name.
    """
    spelled = {name.lower(): name for name in known}
    names = [name.strip() for word in given or () for name in word.split(",")]
    for name in names:
        if name.lower() not in spelled:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(spelled.values())}", param_hint=flag)
    return list(dict.fromkeys(spelled[name.lower()] for name in names)) or list(usual)
