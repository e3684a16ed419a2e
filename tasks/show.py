"""A run in the Prefect UI: the table of its epochs, and a page with a curve for every signal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from lightning_core.epoch.epoch import Run
from lightning_core.epoch.report import run_signals
from lightning_core.lake.why import Finding
from lightning_core.tracking.page import WEIGHED, Signals, page, weighs
from lightning_flows.tasks.progress import logger


def show_run(run: Run, rows: list[dict[str, Any]], record: str | None) -> None:
    """Show a run in Prefect's UI, if its server is there. `rows`: those of epoch_rows; `record`: where MLflow has the
    run.
    """
    described = f"Epochs of run {run.run}" + (f"; {record}" if record else "")
    described += f". {WEIGHED}" if weighs(rows) else ""
    signals = run_signals(run)
    table = _table(rows, _dropped(signals))
    _create(lambda: create_table_artifact(key=_key("epochs", run), table=table, description=described))
    text = page(run.run, rows, signals, record)
    _create(lambda: create_markdown_artifact(key=_key("report", run), markdown=text, description=f"Run {run.run}"))


def show_findings(run: Run, findings: list[Finding]) -> None:
    """Show the diagnosis of a run as a table."""
    lines = ["| | where | what | remedy | rows behind it |", "|---|---|---|---|---|"]
    for found in findings:
        cells = (found.severity, found.where, found.what, f"{found.finds} {found.remedy}", f"`{found.evidence}`")
        lines.append(f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |")
    text = "\n".join(lines) if findings else "Nothing found."
    described = f"Diagnosis of run {run.run}"
    _create(lambda: create_markdown_artifact(key=_key("why", run), markdown=text, description=described))


def _key(kind: str, run: Run) -> str:
    return f"{kind}-{run.run.lower().replace('_', '-')}"


def _table(rows: list[dict[str, Any]], dropped: dict[int, dict[str, int]]) -> list[dict[str, Any]]:
    """Return a row an epoch. Every row has every column: the UI shows those of the first."""
    stages = dict.fromkeys(stage for row in reversed(rows) for stage in row["seconds"])
    return [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if k not in ("run", "seconds")}
        | {"epoch": "before" if row["epoch"] < 0 else row["epoch"]}
        | {"versions": _pairs(row["versions"]), "dropped": _pairs(dropped.get(row["epoch"], {}))}
        | {f"{s} s": round(row["seconds"][s], 1) if s in row["seconds"] else None for s in stages}
        for row in rows
    ]


def _dropped(signals: Signals) -> dict[int, dict[str, int]]:
    """Return epoch → reason → calls left out of training, of all policies."""
    found: dict[int, dict[str, int]] = {}
    for (_, signal), points in sorted(signals.items(), key=lambda item: item[0][1]):
        if signal.startswith("dropped/"):
            reason = signal.removeprefix("dropped/")
            for epoch, calls in points:
                of_epoch = found.setdefault(epoch, {})
                of_epoch[reason] = of_epoch.get(reason, 0) + int(calls)
    return found


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _create(create: Callable[[], Any]) -> None:
    try:
        create()
    except Exception as error:  # noqa: BLE001 - a Prefect server that is away must not stop an epoch
        logger().warning("no artifact in the Prefect UI: %s", error)
