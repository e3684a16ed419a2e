"""Charts as SVG. Colours and sizes of letters are the style sheet's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from lightning_core.ui.rollout import Span

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560.0, 228.0, 46.0, 18.0, 10.0, 38.0


@dataclass(frozen=True)
class Line:
    """Points from left to right, each `(x, y, low, high)`; `low` and `high` bound its band. `names`: what each point is of."""

    name: str
    points: list[tuple[float, float, float, float]]
    names: Sequence[str] = ()


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return round numbers from `low` to `high`, about five; `whole`: no fractions."""
    least = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)
    step = max(step, 1.0) if whole else step
    return [at * step for at in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]


def line_chart(
    lines: Sequence[Line], across: str, percent: bool = True, domain: tuple[float, float] | None = None
) -> Markup:
    """Draw lines with their bands over one axis; nothing where there is no point.

    The axis goes from and to `domain` (default: what the points span).
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup("")
    low_x, high_x = domain or (min(p[0] for p in points), max(p[0] for p in points))
    low_y, high_y = min(0.0, *(p[2] for p in points)), max(1.0 if percent else 0.0, *(p[3] for p in points))

    def x(value: float) -> float:
        return _LEFT + (value - low_x) / ((high_x - low_x) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low_y) / ((high_y - low_y) or 1) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for value in ticks(low_y, high_y):
        label = f"{value:.0%}" if percent else f"{value:,.10g}"
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{label}</text>')
    for value in ticks(low_x, high_x, all(p[0].is_integer() for p in points)):
        parts.append(f'<text x="{x(value):.1f}" y="{_HEIGHT - 22}" text-anchor="middle">{value:,.10g}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{escape(across)}</text>')
    for number, line in enumerate(lines):
        upper = " ".join(f"{x(p[0]):.1f},{y(p[3]):.1f}" for p in line.points)
        lower = " ".join(f"{x(p[0]):.1f},{y(p[2]):.1f}" for p in reversed(line.points))
        middle = " ".join(f"{x(p[0]):.1f},{y(p[1]):.1f}" for p in line.points)
        parts.append(f'<polygon class="band line{number}" points="{upper} {lower}"/>')
        parts.append(f'<polyline class="line line{number}" points="{middle}"/>')
        for at, (place, value, low, high) in enumerate(line.points):
            of = f"{line.names[at]}, " if line.names else ""
            label = f"{value:.1%} ({low:.1%} to {high:.1%})" if percent else f"{value:.4g} ({low:.4g} to {high:.4g})"
            parts.append(
                f'<circle class="line{number}" cx="{x(place):.1f}" cy="{y(value):.1f}" r="3.5">'
                f"<title>{escape(line.name)}, {escape(of)}{escape(across)} {place:.4g}: {label}</title></circle>"
            )
    return Markup(f'<svg class="chart" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img">{"".join(parts)}</svg>')


def share_bar(parts: Sequence[tuple[str, float, str]]) -> Markup:
    """Draw a bar in parts, each `(colour, value, title)`, in their order."""
    total = sum(value for _, value, _ in parts) or 1.0
    drawn, at = [], 0.0
    for colour, value, title in parts:
        width = 1000 * value / total
        drawn.append(
            f'<rect fill="{escape(colour)}" x="{at:.2f}" y="0" width="{width:.2f}" height="16"><title>{escape(title)}</title></rect>'
        )
        at += width
    return Markup(
        f'<svg class="bar" viewBox="0 0 1000 16" preserveAspectRatio="none" role="img">{"".join(drawn)}</svg>'
    )


def swatch(colour: str) -> Markup:
    """Draw the colour of a bar's part, to stand before its name."""
    return Markup(f'<svg class="swatch" viewBox="0 0 1 1"><rect fill="{escape(colour)}" width="1" height="1"/></svg>')


def time_line(spans: Sequence[Span]) -> Markup:
    """Draw spans as bars, one a row, in the order given; what overlaps stands below one another."""
    if not spans:
        return Markup("")
    whole = max(s.starts_s + s.seconds for s in spans) or 1e-9
    row, height = 14, 14 * len(spans) + 4
    drawn = []
    for number, span in enumerate(spans):
        left, width = 1000 * span.starts_s / whole, max(1000 * span.seconds / whole, 2.0)
        bar = (
            f'<rect class="{escape(span.kind)} agent{span.agent}" x="{left:.1f}" y="{2 + row * number}" width="{width:.1f}" height="{row - 3}" rx="2">'
            f"<title>{escape(span.name)}: {span.starts_s:.2f} s to {span.starts_s + span.seconds:.2f} s</title></rect>"
        )
        drawn.append(f'<a href="{escape(span.href)}">{bar}</a>' if span.href else bar)
    return Markup(
        f'<svg class="times" viewBox="0 0 1002 {height}" preserveAspectRatio="none" height="{height}" role="img">{"".join(drawn)}</svg>'
    )
