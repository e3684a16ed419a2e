"""docs/learning.svg and the table in docs/learning.md, from the curves of bench/learning.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- table: bench/learning.py -->", "<!-- end of the table -->"
_COLOURS = {"ours": "#1a66b8", "transitions": "#c2560c", "stock": "#6b6b6b"}
_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 360, 56, 20
_RIGHT, _BOTTOM = _WIDTH - 130, _HEIGHT - 44

Curves = dict[str, list[dict[str, Any]]]


def write_page(curves: Curves, still_missing: list[tuple[int, str]], docs: Path = DOCS) -> None:
    """Draw the plot and put the table between its marks; nothing where there is no curve yet."""
    if not curves:
        return
    (docs / "learning.svg").write_text(plot(curves))
    page = docs / "learning.md"
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    shown = f"![Held-out share right by rollouts](learning.svg)\n\n{table(curves, still_missing)}"
    page.write_text(f"{before}{BEGIN}\n{shown}\n{END}{after}")


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


def plot(curves: Curves) -> str:
    """An SVG: mean share right by rollouts, with the span of the seeds behind it."""
    most = max(p["rollouts"] for points in curves.values() for p in points) or 1

    def x(rollouts: float) -> str:
        return f"{_LEFT + (_RIGHT - _LEFT) * rollouts / most:.1f}"

    def y(share: float) -> str:
        return f"{_BOTTOM - (_BOTTOM - _TOP) * share:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for tenth in range(0, 11, 2):
        share = tenth / 10
        parts.append(f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y(share)}" y2="{y(share)}" stroke="#e0e0e0"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{float(y(share)) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for rollouts in sorted({p["rollouts"] for points in curves.values() for p in points}):
        parts.append(f'<text x="{x(rollouts)}" y="{_BOTTOM + 18}" text-anchor="middle">{rollouts}</text>')
    parts.append(f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">rollouts</text>')
    for arm, points in curves.items():
        colour = _COLOURS[arm]
        edge = [(p["rollouts"], p["max"]) for p in points] + [(p["rollouts"], p["min"]) for p in reversed(points)]
        band = " ".join(f"{x(r)},{y(s)}" for r, s in edge)
        line = " ".join(f"{x(p['rollouts'])},{y(p['mean'])}" for p in points)
        parts.append(f'<polygon points="{band}" fill="{colour}" opacity="0.12"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        last = points[-1]
        parts.append(
            f'<text x="{_RIGHT + 8}" y="{float(y(last["mean"])) + 4:.1f}" fill="{colour}">{arm} {last["mean"]:.0%}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
