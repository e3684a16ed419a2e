"""bench/RESULTS.md, from bench/results/figures.jsonl: the newest of each figure first, then all that was measured.

    .venv/bin/python -m bench.results_page

A line of the file: `date`, `machine`, `command` (with what else the machine did), and `said`: a list of texts and of the
figures as a bench printed them. Lines are added and never changed.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results/figures.jsonl"
PAGE = Path(__file__).parent / "RESULTS.md"
_INTRODUCTION = """\
# Results

Figures that were measured, with date, hardware and command. A bench prints one JSON line; what it compares is in its
docstring, `ratio` is how many times better than what is beside it. `bench/results/figures.jsonl` has them line by line, and
`make results` writes this page from it.
"""


def page() -> str:
    """Return the page. Raises KeyError or ValueError for a line that is not as it has to be."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    parts = [_INTRODUCTION]
    for machine in dict.fromkeys(row["machine"] for row in rows):
        here = [row for row in rows if row["machine"] == machine]
        parts.append(f"## {machine}\n\n### The newest of each figure\n")
        parts.append("| figure | value | beside it | ratio | n | date | command |\n|---|---|---|---|---|---|---|")
        parts += [_newest(figure, row) for figure, row in sorted(newest(here).values(), key=lambda x: x[0]["name"])]
        parts.append("\n### All that was measured\n\n| date | command | figure |\n|---|---|---|")
        parts += [f"| {row['date']} | {row['command']} | {''.join(map(_text, row['said']))} |" for row in here]
    return "\n".join(parts) + "\n"


def newest(rows: list[dict[str, Any]]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Name → the figure of the newest date, of several that of the largest `n`, and its row."""
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for row in rows:
        for figure in row["said"]:
            if isinstance(figure, dict):
                known = found.get(figure["name"])
                if known is None or (row["date"], figure["n"]) > (known[1]["date"], known[0]["n"]):
                    found[figure["name"]] = figure, row
    return found


def _newest(figure: dict[str, Any], row: dict[str, Any]) -> str:
    value, beside, ratio = ("–" if figure.get(k) is None else f"{figure[k]:,}" for k in ("value", "baseline", "ratio"))
    cells = (f"`{figure['name']}`", f"{value} {figure['unit']}".strip(), beside, ratio, f"{figure['n']:,}")
    return f"| {' | '.join(cells)} | {row['date']} | {textwrap.shorten(row['command'], 90, placeholder=' …')} |"


def _text(part: str | dict[str, Any]) -> str:
    return part if isinstance(part, str) else f"`{json.dumps(part, separators=(',', ':'), ensure_ascii=False)}`"


if __name__ == "__main__":
    PAGE.write_text(page())
