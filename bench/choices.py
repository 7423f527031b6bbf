"""Options that the benches share: names, given once or several times or with commas, and the file for the results."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import typer

from ..naming import chosen as looked_up
from .providers import NAMES, OURS, PEERS, QUICK
from .record import RESULTS

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
    try:
        names = looked_up(words, [*known, ALL], flag.strip("-").removesuffix("s"))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from error
    return list(known) if ALL in names else names


def chosen_providers(given: Iterable[str] | None, *more: str) -> list[str]:
    """The providers named, of which every one is installed; none if none is given, and for "all" whoever is there.

    Args:
        given: as on the command line.
        more: what a bench has besides ours and the peers.

    Raises:
        typer.BadParameter: an unknown name, or a package that is not installed.
    """
    words = list(given or ())
    names = chosen("--providers", words, [*NAMES, *more], ())
    installed = {OURS, *more, *(peer.name for peer in PEERS if peer.installed)}
    missing = [name for name in names if name not in installed]
    if missing and len(names) < len(NAMES) + len(more):
        packages = dict.fromkeys(peer.distribution for peer in PEERS if peer.name in missing)
        what = f"{', '.join(missing)} cannot be imported here"
        raise typer.BadParameter(f"{what}; pip install {' '.join(packages)}", param_hint="--providers")
    return names


def results_file(bench: str) -> Any:
    """The option that names the file to append to, which is opened before anything is measured."""

    def appendable(path: Path | None) -> Path | None:
        file = path or RESULTS / f"{bench}.jsonl"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.open("a").close()
        except OSError as error:
            raise typer.BadParameter(f"cannot append to {file}: {error.strerror}", param_hint="--json") from None
        return path

    usual = f"bench/results/{bench}.jsonl"
    return typer.Option("--json", help=f"File to append to instead of {usual}.", callback=appendable)
