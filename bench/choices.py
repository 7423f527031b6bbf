"""Options of the benches that name things: given once or several times, or in one word with commas."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import typer

from ..naming import chosen as looked_up
from .providers import NAMES, QUICK

ALL = "all"


def naming(flag: str, known: Iterable[str], usual: Iterable[str] | None = None, why: str = "") -> Any:
    """The option of a command, whose help lists what there is and what is taken if it is not given.

    Args:
        flag: as on the command line.
        known: the names.
        usual: those taken if none is given; None for all.
        why: the others are not, as a clause.
    """
    names = list(dict.fromkeys(known))
    taken = names if usual is None else list(usual)
    left = [name for name in names if name not in taken]
    but = f"{ALL} but {', '.join(left)}{why}" if left else ALL
    default = ", ".join(taken) if len(taken) < len(left) else but
    return typer.Option(flag, help=f"Of {', '.join(names)} or {ALL}, with commas or repeated; {default} if not given.")


def naming_providers(*more: str) -> Any:
    """The option that names who is timed, of those that are installed: ours, the peers, and what else a bench has."""
    return naming("--providers", [*NAMES, *more], [*QUICK, *more], ", which build for long,")


def chosen(flag: str, given: Iterable[str] | None, known: Collection[str], usual: Iterable[str]) -> list[str]:
    """The names given, in any case, as they are known; all for "all", the usual ones if none is given.

    Raises:
        typer.BadParameter: an unknown name.
    """
    words = [word for several in given or () for word in several.split(",")]
    if not words:
        return list(usual)
    if any(word.strip().lower() == ALL for word in words):
        return list(known)
    try:
        return looked_up(words, known, flag.strip("-").removesuffix("s"))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from error
