"""Names as people give them on a command line: in any case, several in one word with commas."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def spelled(name: str, known: Collection[str], what: str) -> str:
    """A name as it is known.

    Args:
        name: in any case.
        known: the names that there are.
        what: they name, for the error.

    Raises:
        ValueError: no such name; lists those that there are.
    """
    for one in known:
        if one.lower() == name.strip().lower():
            return one
    raise ValueError(f"there is no {what} {name!r}; choose from {', '.join(known)}")


def chosen(given: Iterable[str], known: Collection[str], what: str) -> list[str]:
    """Every name once, in the order given; all that are known if none is given.

    Raises:
        ValueError: as `spelled`.
    """
    names = [spelled(name, known, what) for words in given for name in words.split(",")]
    return list(dict.fromkeys(names or known))
