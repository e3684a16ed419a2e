"""Results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


def report_console() -> Console:
    """Return a console for the terminal; where there is none (a log), one that is wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def as_table(rows: Iterable[dict[str, Any]], title: str, caption: str = "", left: Collection[str] = ()) -> Table:
    """Return rows, all with the same columns, as a table. `left`: columns of text; the others are aligned as numbers are."""
    shown = Table(title=title, caption=caption, box=SIMPLE)
    for row in rows:
        if not shown.columns:
            for name in row:
                shown.add_column(name, justify="left" if name in left else "right", no_wrap=name not in left)
        shown.add_row(*map(cell, row.values()))
    return shown


def cell(value: Any, form: str = "") -> str:
    """Return a value as `format` writes it; an empty text for None."""
    return "" if value is None else format(value, form)
