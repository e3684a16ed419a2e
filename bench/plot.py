"""A plot of lines with a band behind each, as an SVG: what docs/learning.md and docs/tasks.md show."""

from __future__ import annotations

from dataclasses import dataclass

_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 360, 56, 20
_RIGHT, _BOTTOM = _WIDTH - 130, _HEIGHT - 44


@dataclass(frozen=True)
class Line:
    name: str
    colour: str
    points: list[tuple[float, float, float, float]]  # x, y, and the band's least and most y; y between 0 and 1


def plot(lines: list[Line], x_axis: str) -> str:
    """The SVG. Its y axis goes from 0 to 100%, or to the next even tenth above all bands."""
    far = max(x for line in lines for x, *_ in line.points) or 1
    tenths = range(0, min(10, int(max(most for line in lines for *_, most in line.points) * 5 + 1) * 2) + 1, 2)
    top = tenths[-1] / 10

    def x(value: float) -> str:
        return f"{_LEFT + (_RIGHT - _LEFT) * value / far:.1f}"

    def y(share: float) -> str:
        return f"{_BOTTOM - (_BOTTOM - _TOP) * share / top:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for share in (tenth / 10 for tenth in tenths):
        parts.append(f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y(share)}" y2="{y(share)}" stroke="#e0e0e0"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{float(y(share)) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for value in sorted({value for line in lines for value, *_ in line.points}):
        parts.append(f'<text x="{x(value)}" y="{_BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{x_axis}</text>')
    for line in lines:
        edge = [(at, most) for at, _, _, most in line.points] + [
            (at, least) for at, _, least, _ in reversed(line.points)
        ]
        band = " ".join(f"{x(at)},{y(share)}" for at, share in edge)
        through = " ".join(f"{x(at)},{y(share)}" for at, share, *_ in line.points)
        last = line.points[-1][1]
        parts.append(f'<polygon points="{band}" fill="{line.colour}" opacity="0.12"/>')
        parts.append(f'<polyline points="{through}" fill="none" stroke="{line.colour}" stroke-width="2"/>')
        parts.append(
            f'<text x="{_RIGHT + 8}" y="{float(y(last)) + 4:.1f}" fill="{line.colour}">{line.name} {last:.0%}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
