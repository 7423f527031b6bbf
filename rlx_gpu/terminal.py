"""Tables on a terminal; needs rich."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

WIDEST = 1000  # columns


def print_whole(console: Console, table: Table) -> None:
    """Prints a table as wide as it is: a narrow terminal wraps its lines, where rich would cut off numbers."""
    width, wide = console.width, console.options.update(max_width=WIDEST)
    console.width = max(width, console.measure(table, options=wide).maximum)
    console.print(table)
    console.width = width
