"""A run on one page of Markdown, for the Prefect UI: how it goes in a line, in plots, in numbers."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

Points = list[tuple[int, float]]
Signals = Mapping[tuple[str | None, str], Points]  # (policy, signal) → (epoch, value)s, oldest first
Dropped = Mapping[int, Mapping[str, int]]  # epoch → reason → calls left out of training

_BARS = "▁▂▃▄▅▆▇█"
REPEATED = (
    "Repeated tasks (`rollout.unsolved_per_epoch`) are tasks of the epoch before that at least one of their "
    "rollouts did not solve. They are harder than fresh ones, so the mean reward over both can fall while the policy improves: "
    "compare fresh tasks with fresh tasks."
)
_AXES = (
    "In the plot, `mean reward` is over all rollouts; below, a policy's `reward` is over the rollouts in which it acted. Held-out "
    "figures stand at the number of epochs trained before them: 0 is before training, 5 is after epoch 4. "
    "`kept` counts the calls trained, `dropped/…` those left out, by reason: `no_spread` and "
    "`little_spread` are calls of groups whose rollouts had the same, or nearly the same, reward."
)
_FIRST = (
    "reward",
    "reward_fresh",
    "reward_repeated",
    "held_out_right",
    "held_out_reward",
    "kl",
    "mismatch_kl",
    "entropy",
    "kept",
)  # of a table's lines


def page(run: str, rows: list[dict[str, Any]], dropped: Dropped, signals: Signals, record: str | None) -> str:
    """`rows` are those of epoch_rows; `record` links to the run elsewhere."""
    parts = [f"# Run {run}"]
    if record:
        parts.append(record)
    if rows:
        parts += [_newest(rows[-1]), f"![plots of run {run}]({_as_address(plots(rows, dropped, signals))})"]
        parts += [REPEATED] * repeats(rows) + [_AXES]
    for policy in sorted({policy for policy, _ in signals}, key=lambda name: name or ""):
        parts += [f"## {policy or 'All policies'}", _table({s: p for (of, s), p in signals.items() if of == policy})]
    return "\n\n".join(parts) + "\n"


def repeats(rows: list[dict[str, Any]]) -> bool:
    """Whether any epoch (rows of epoch_rows) had tasks of the one before again."""
    return any(row.get("reward_repeated") is not None for row in rows)


def _newest(row: Mapping[str, Any]) -> str:
    line = ["before training" if row["epoch"] < 0 else f"epoch {row['epoch']}"]
    if row.get("mean_reward") is not None:
        parts = {"fresh tasks": row["reward_fresh"], "repeated ones": row["reward_repeated"]}
        apart = "" if None in parts.values() else ", ".join(f"{reward:.3f} of {of}" for of, reward in parts.items())
        line.append(f"mean reward {row['mean_reward']:.3f}" + (f" ({apart})" if apart else ""))
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
        lines.append(f"| {name} | {points[0][0]}–{points[-1][0]} | {curve(values)} | {line} |")
    return "\n".join(lines)


def curve(values: list[float]) -> str:
    """Bars between the least and the greatest value; flat where they print the same, a gap where there is no number."""
    numbers = [value for value in values if math.isfinite(value)]
    low = min(numbers, default=0.0)
    high = max(numbers, default=0.0)
    width = high - low if f"{high:.4g}" != f"{low:.4g}" else 0.0
    return "".join(
        _BARS[round((value - low) / width * (len(_BARS) - 1)) if width else 0] if math.isfinite(value) else " "
        for value in values
    )


def plots(rows: list[dict[str, Any]], dropped: Dropped, signals: Signals) -> str:
    """Reward, length of responses, KL and drops by epoch, as one SVG. An evaluation stands at the epoch that follows it."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    reward, length, kl, drops = figure.subplots(2, 2).flat
    means = {"reward": "mean_reward"}
    if repeats(rows):
        means |= {"reward, fresh tasks": "reward_fresh", "reward, repeated tasks": "reward_repeated"}
    rewards = {label: [(r["epoch"], r[mean]) for r in rows if r.get(mean) is not None] for label, mean in means.items()}
    rewards |= _of(signals, "held_out_right")
    _lines(reward, "mean reward, held-out share right", {label: points for label, points in rewards.items() if points})
    each = [(row["epoch"], row["response_tokens"] / row["calls"]) for row in rows if row.get("calls")]
    _lines(length, "tokens a response", {"all policies": each} if each else {})
    _lines(kl, "KL: kl to the reference, mismatch_kl to the sampler", _of(signals, "kl", "mismatch_kl"))
    epochs, below = sorted(dropped), dict.fromkeys(dropped, 0)
    for reason in sorted({reason for reasons in dropped.values() for reason in reasons}):
        calls = [dropped[epoch].get(reason, 0) for epoch in epochs]
        drops.bar(epochs, calls, bottom=[below[epoch] for epoch in epochs], label=reason)
        below = {epoch: below[epoch] + more for epoch, more in zip(epochs, calls, strict=True)}
    _lines(drops, "calls left out of training", {})
    for axes in (reward, length, kl, drops):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lightning-flows"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _of(signals: Signals, *names: str) -> dict[str, Points]:
    return {f"{policy or ''} {name}".strip(): points for (policy, name), points in signals.items() if name in names}


def _lines(axes: Any, title: str, lines: Mapping[str, Iterable[tuple[int, float]]]) -> None:
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    for label, points in sorted(lines.items()):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    else:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color="gray")


def _as_address(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
