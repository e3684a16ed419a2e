"""One JSON line a figure, on stdout; everything for people goes to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any


def figure(
    name: str, value: float, unit: str, baseline: float | None, n: int, smaller_is_better: bool = False, **more: Any
) -> None:
    """Print a figure. `ratio` is how many times better than `baseline` it is; None where there is nothing to divide."""
    over, under = (baseline, value) if smaller_is_better else (value, baseline)
    ratio = round(over / under, 2) if over and under and over > 0 and under > 0 else None
    line = {"name": name, "value": _short(value), "unit": unit, "baseline": _short(baseline), "ratio": ratio, "n": n}
    print(json.dumps(line | {key: _short(x) for key, x in more.items()}), flush=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _short(value: Any) -> Any:
    """Four figures are what a shared machine gives."""
    if isinstance(value, list):
        return [_short(x) for x in value]
    return float(f"{value:.4g}") if isinstance(value, float) and value < 1000 else _whole(value)


def _whole(value: Any) -> Any:
    return round(value) if isinstance(value, float) else value
