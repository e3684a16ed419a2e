"""Rows as text that fits a terminal: a table where its columns do, else one block a row."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

_NARROWEST = 12  # to which a column of text is cut before the rows become blocks
_WIDEST = 60


def render(columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int = 160) -> list[str]:
    """Lines of a table of at most `width` characters; long text ends in `…`. Empty cells are NULL.

    Names of columns are broken at `_` where that makes it fit; where nothing does, each row is a block of its own.
    """
    cells = [[cell(value) for value in row] for row in rows]
    numbers = [all(isinstance(row[i], int | float | Decimal | None) for row in rows) for i in range(len(columns))]
    for heads in ([[name] for name in columns], [_broken(name) for name in columns]):
        widths = _widths(heads, cells, numbers, width - 2 * (len(columns) - 1))
        if widths is not None:
            height = max(len(head) for head in heads)
            names = [[""] * (height - len(head)) + head for head in heads]
            lines = [_line([name[i] for name in names], widths, numbers) for i in range(height)]
            lines.append("  ".join("─" * wide for wide in widths))
            return lines + [_line(row, widths, numbers) for row in cells]
    return _blocks(columns, rows, width)


def _widths(heads: list[list[str]], cells: list[list[str]], numbers: list[bool], room: int) -> list[int] | None:
    """Widths of the columns in so much room; None where it is not enough. Numbers are never cut."""
    least, widths = [], []
    for i, (head, number) in enumerate(zip(heads, numbers, strict=True)):
        name = max(len(part) for part in head)
        wide = max([name, *(len(row[i]) for row in cells)])
        least.append(wide if number else min(wide, max(_NARROWEST, name)))
        widths.append(wide if number else min(wide, max(_WIDEST, name)))
    if sum(least) > room:
        return None
    while sum(widths) > room:
        widths[max((i for i in range(len(widths)) if widths[i] > least[i]), key=lambda i: widths[i])] -= 1
    return widths


def _broken(name: str) -> list[str]:
    parts = name.split("_")
    return [part + "_" for part in parts[:-1]] + parts[-1:]


def cell(value: Any) -> str:
    """One value on one line: floats to four digits, times to the second, what is nested as JSON."""
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


def _line(values: Sequence[str], widths: list[int], numbers: list[bool]) -> str:
    parts = [
        _cut(text, wide).rjust(wide) if number else _cut(text, wide).ljust(wide)
        for text, wide, number in zip(values, widths, numbers, strict=True)
    ]
    return "  ".join(parts).rstrip()


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int) -> list[str]:
    margin = max(len(name) for name in columns) + 2
    lines = []
    for number, row in enumerate(rows, 1):
        lines.append(f"── {number} ".ljust(min(width, 40), "─"))
        lines += [
            name.ljust(margin) + _cut(cell(value), max(width - margin, _NARROWEST))
            for name, value in zip(columns, row, strict=True)
            if value is not None
        ]
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
