"""docs/learning.svg and the table in docs/learning.md, from the curves of bench/learning.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.plot import Line, plot
from docs.marks import between

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- table: bench/learning.py -->", "<!-- end of the table -->"
_COLOURS = {"ours": "#1a66b8", "transitions": "#c2560c", "stock": "#6b6b6b"}

Curves = dict[str, list[dict[str, Any]]]


def write_page(curves: Curves, still_missing: list[tuple[int, str]], docs: Path = DOCS) -> None:
    """Draw the plot and put the table between its marks; nothing where there is no curve yet."""
    if not curves:
        return
    lines = [
        Line(arm, _COLOURS[arm], [(p["rollouts"], p["mean"], p["min"], p["max"]) for p in points])
        for arm, points in curves.items()
    ]
    (docs / "learning.svg").write_text(plot(lines, "rollouts"))
    page = docs / "learning.md"
    shown = f"![Held-out share right by rollouts](learning.svg)\n\n{table(curves, still_missing)}"
    page.write_text(between(page.read_text(), BEGIN, END, shown))


def table(curves: Curves, still_missing: list[tuple[int, str]]) -> str:
    """Held-out share right by epochs trained: mean (least to most; seeds)."""
    epochs = sorted({p["epochs"] for points in curves.values() for p in points})
    lines = ["| epochs | rollouts | " + " | ".join(curves) + " |", "|---|---|" + "---|" * len(curves)]
    for number in epochs:
        at = {arm: next((p for p in points if p["epochs"] == number), None) for arm, points in curves.items()}
        rollouts = next(p["rollouts"] for p in at.values() if p is not None)
        cells = [
            "" if p is None else f"{p['mean']:.1%} ({p['min']:.0%} to {p['max']:.0%}; {p['seeds']})"
            for p in at.values()
        ]
        lines.append(f"| {number} | {rollouts} | " + " | ".join(cells) + " |")
    if still_missing:
        lines += ["", "Not run yet: " + ", ".join(f"{arm} with seed {seed}" for seed, arm in still_missing) + "."]
    return "\n".join(lines)
