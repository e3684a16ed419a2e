"""A run in the Prefect UI: the table of its epochs, and a report with a curve for every signal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from lightning_core.config import Settings
from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake
from tasks.progress import logger

_BARS = "▁▂▃▄▅▆▇█"


def show_run(settings: Settings, rows: list[dict[str, Any]], record: str | None) -> None:
    """`rows`: those of epoch_rows; `record`: where MLflow has the run. A Prefect server that is away only goes without."""
    name, described = settings.run.lower().replace("_", "-"), f"Epochs of run {settings.run}"
    dropped = _dropped(settings)
    table = [
        {k: v for k, v in row.items() if k != "seconds"}
        | {"versions": _pairs(row["versions"]), "dropped": _pairs(dropped.get(row["epoch"], {}))}
        | {f"{stage} s": round(seconds, 1) for stage, seconds in row["seconds"].items()}
        for row in rows
    ]
    _tell(
        lambda: create_table_artifact(
            key=f"epochs-{name}", table=table, description=described + (f"; {record}" if record else "")
        )
    )
    text = report(settings.run, _signals(settings), record)
    _tell(lambda: create_markdown_artifact(key=f"report-{name}", markdown=text, description=f"Run {settings.run}"))


def report(run: str, signals: dict[str, list[tuple[int, float]]], record: str | None) -> str:
    """Markdown: a line a signal (`policy signal` → its (epoch, value)s), with its first, last, least and greatest value."""
    lines = [f"# Run {run}", ""] + ([record, ""] if record else [])
    lines += ["| signal | epochs | curve | first | last | least | greatest |", "|---|---|---|---|---|---|---|"]
    for name, points in sorted(signals.items()):
        values = [value for _, value in points]
        told = " | ".join(f"{value:.4g}" for value in (values[0], values[-1], min(values), max(values)))
        lines.append(f"| {name} | {points[0][0]}–{points[-1][0]} | {curve(values)} | {told} |")
    return "\n".join(lines) + "\n"


def curve(values: list[float]) -> str:
    """Bars between the least and the greatest value; a gap where there is no number."""
    numbers = [value for value in values if math.isfinite(value)]
    low = min(numbers, default=0.0)
    width = max(numbers, default=0.0) - low
    return "".join(
        _BARS[round((value - low) / width * (len(_BARS) - 1)) if width else 0] if math.isfinite(value) else " "
        for value in values
    )


def _signals(settings: Settings) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    with catalog.connect(Lake(settings.home).root) as con:
        rows = con.execute(
            """
            SELECT concat_ws(' ', policy, signal), epoch, value FROM signals
            WHERE run = ? AND value IS NOT NULL AND signal NOT LIKE 'seconds/%' ORDER BY ALL
            """,
            [settings.run],
        ).fetchall()
    for name, epoch, value in rows:
        found.setdefault(name, []).append((epoch, value))
    return found


def _dropped(settings: Settings) -> dict[int, dict[str, int]]:
    """Epoch → reason → calls left out of training."""
    found: dict[int, dict[str, int]] = {}
    with catalog.connect(Lake(settings.home).root) as con:
        query = (
            "SELECT epoch, reason, sum(calls)::BIGINT FROM exclusion_reasons WHERE run = ? GROUP BY ALL ORDER BY ALL"
        )
        for epoch, reason, calls in con.execute(query, [settings.run]).fetchall():
            found.setdefault(epoch, {})[reason] = calls
    return found


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _tell(create: Callable[[], Any]) -> None:
    try:
        create()
    except Exception as error:  # noqa: BLE001 - a Prefect server that is away must not stop an epoch
        logger().warning("no artifact in the Prefect UI: %s", error)
