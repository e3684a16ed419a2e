"""Rows as text that fits a terminal: a table where its columns do, else one block a row. Elsewhere no cell is cut."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_NARROWEST = 12  # to which a column of text is cut before the rows become blocks
_WIDEST = 60
_NO_TERMINAL = 160  # the width by which rows become blocks where nothing is cut
_ANY = 10**6


def render(columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int | None) -> list[str]:
    """Return lines of a table of at most `width` characters; long text ends in `…`, numbers are whole.

    Empty cells are NULL. Names of columns are broken at `_` where that makes it fit; where nothing does, each row is a
    block of its own.
    width: None for a pipe or a file, where lines are as long as their cells.
    """
    cells = [[cell(value) for value in row] for row in rows]
    numbers = [all(isinstance(row[i], int | float | Decimal | None) for row in rows) for i in range(len(columns))]
    for names in (columns, [name.replace("_", "_\n") for name in columns]):
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        least = -2
        for i, (name, number) in enumerate(zip(names, numbers, strict=True)):
            head = max(map(cell_len, name.split("\n")))
            wide = max((cell_len(row[i]) for row in cells), default=0)
            least += 2 + max(head, wide if number else min(wide, _NARROWEST))
            most = None if number or width is None else max(head, _WIDEST)
            table.add_column(_text(name), justify="right" if number else "left", no_wrap=number, max_width=most)
        if least <= (width or _NO_TERMINAL):
            for row in cells:
                table.add_row(*map(_text, row))
            console = Console(width=width or _ANY, color_system=None)
            with console.capture() as drawn:
                console.print(table)
            return [line.rstrip() for line in drawn.get().splitlines()]
    return [line for i, row in enumerate(rows, 1) for line in _block(i, columns, row, width)]


def cell(value: Any) -> str:
    """Return one value on one line: floats to four digits, times to the second, nested values as JSON."""
    if value is None:
        return ""
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return f"{value:.0f}" if math.isfinite(value) and abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ", "seconds")
    if isinstance(value, dict) and not any(isinstance(v, dict | list) for v in value.values()):
        value = ", ".join(f"{k}={v}" for k, v in value.items())
    elif isinstance(value, list) and all(isinstance(v, str | float) for v in value):
        value = ", ".join(map(cell, value))
    elif isinstance(value, dict | list | tuple):
        value = json.dumps(value, default=str, ensure_ascii=False)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))


def _text(text: str) -> Text:
    """Return text whose lines are cut and never wrapped, while its column may shrink."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _block(number: int, columns: Sequence[str], row: Sequence[Any], width: int | None) -> list[str]:
    margin = max(map(len, columns)) + 2
    lines = [f"── {number} ".ljust(min(width or _NO_TERMINAL, 40), "─")]
    for name, value in zip(columns, row, strict=True):
        if value is not None:
            text = Text(cell(value))
            text.truncate(_ANY if width is None else max(width - margin, _NARROWEST), overflow="ellipsis")
            lines.append(name.ljust(margin) + text.plain)
    return lines
