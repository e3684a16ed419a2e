"""A run on one page of Markdown, for the Prefect UI: how it goes in a line, and a curve for every signal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_core.events import when

Points = list[tuple[int, float]]
Signals = Mapping[tuple[str | None, str], Points]  # (policy, signal) → (epoch, value)s, oldest first

_BARS = "▁▂▃▄▅▆▇█"
WEIGHED = (
    "Tasks that the policy does not solve yet are drawn more often (`tasks.sampler`), so the mean reward can fall while the policy improves; "
    "`reward_uniform` is what it would be if all tasks were drawn alike."
)
_COUNTED = (
    "`reward` is over the rollouts in which the policy acted. Held-out figures are of evaluations before training and after epochs. `kept` "
    "counts the calls trained, `dropped/…` those left out, by reason. Tasks, rollouts and tokens: "
    "`lightning-flows ui`."
)
_FIRST = (
    "reward",
    "reward_uniform",
    "held_out_right",
    "held_out_reward",
    "kl",
    "mismatch_kl",
    "entropy",
    "kept",
)  # of a table's lines


def page(run: str, rows: list[dict[str, Any]], signals: Signals, record: str | None) -> str:
    """Return the page of a run in Markdown. `rows` are those of epoch_rows; `record` links to the run elsewhere."""
    parts = [f"# Run {run}"]
    if record:
        parts.append(record)
    done = [row for row in rows if row["versions"]]  # of an epoch ahead there may be the rollouts alone
    if done:
        parts += [_newest(done[-1]), *[WEIGHED] * weighs(rows), _COUNTED]
    for policy in sorted({policy for policy, _ in signals}, key=lambda name: name or ""):
        parts += [f"## {policy or 'All policies'}", _table({s: p for (of, s), p in signals.items() if of == policy})]
    return "\n\n".join(parts) + "\n"


def weighs(rows: list[dict[str, Any]]) -> bool:
    """Return whether any epoch (rows of epoch_rows) had some tasks drawn more often than others."""
    return any(row.get("reward_uniform") is not None for row in rows)


def _newest(row: Mapping[str, Any]) -> str:
    line = [when(0) if row["epoch"] < 0 else f"epoch {row['epoch']}"]
    if row.get("mean_reward") is not None:
        uniform = row.get("reward_uniform")
        line.append(
            f"mean reward {row['mean_reward']:.3f}"
            + (f" ({uniform:.3f} if all tasks were drawn alike)" if uniform is not None else "")
        )
        line.append(
            f"{row['rollouts']:,} rollouts"
            + (f" ({row['failed_rollouts']:,} failed)" if row["failed_rollouts"] else "")
        )
        line.append(f"{row['trained_calls'] or 0:,} of {row['calls'] or 0:,} calls trained")
    if row.get("held_out_right") is not None:
        line.append(f"{row['held_out_right']:.1%} right on {row['held_out_tasks']:,} held-out tasks")
    line += [f"{policy} {version}" for policy, version in row["versions"].items()]
    return "**" + ", ".join(line) + "**"


def _table(signals: Mapping[str, Points]) -> str:
    lines = ["| signal | epochs | curve | first | last | least | greatest |", "|---|---|---|---|---|---|---|"]
    for name in sorted(signals, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)):
        points = signals[name]
        values = [value for _, value in points]
        line = " | ".join(f"{value:.4g}" for value in (values[0], values[-1], min(values), max(values)))
        shown = when if name.startswith("held_out_") else str
        epochs = "–".join(dict.fromkeys(shown(epoch) for epoch, _ in (points[0], points[-1])))
        lines.append(f"| {name} | {epochs} | {curve(values)} | {line} |")
    return "\n".join(lines)


def curve(values: list[float]) -> str:
    """Return bars between least and greatest value; flat where they print the same, a gap for what is no number."""
    numbers = [value for value in values if math.isfinite(value)]
    low = min(numbers, default=0.0)
    high = max(numbers, default=0.0)
    width = high - low if f"{high:.4g}" != f"{low:.4g}" else 0.0
    return "".join(
        _BARS[round((value - low) / width * (len(_BARS) - 1)) if width else 0] if math.isfinite(value) else " "
        for value in values
    )
