"""The main job on the embedded default: a real LLM gets better at the calculator example, by one command.

make demo
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from flows.train import train
from lightning_core.config import Settings
from lightning_core.files import write_atomic
from lightning_core.lake.report import epoch_rows
from lightning_core.monitor import PeakMemory
from lightning_core.tracking.mlflow_backend import tracking_uri

_STAGES = {"collect": "rollout", "grade": "rollout", "derive": "sql", "train": "train", "evaluate": "evaluate"}


def demo(settings: Settings, report: Path) -> None:
    """Run flow `train`, print its table, write it to `report`."""
    began = time.monotonic()
    with PeakMemory() as memory:
        train(settings)
    rows = epoch_rows(settings)
    write_atomic(
        report,
        json.dumps(
            {
                "home": str(settings.home),
                "run": settings.run,
                "seconds": round(time.monotonic() - began, 1),
                "peak_pss_gb": round(memory.peak_bytes / 1e9, 2),
                "peak_pss_by_process_gb": {n: round(b / 1e9, 2) for n, b in memory.at_peak.items()},
                "epochs": rows,
            },
            indent=1,
            default=str,
        ).encode(),
    )
    console = report_console()
    console.print(table(rows, f"run {settings.run}"))
    console.print(
        f"{time.monotonic() - began:.0f} s in all, {memory.peak_bytes / 1e9:.1f} GB at the peak; this table: {report}"
    )
    console.print("\nLook further:", *look_further(settings), sep="\n  ", highlight=False, soft_wrap=True)


def report_console() -> Console:
    """The terminal; where there is none (a log), wide enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def look_further(settings: Settings) -> list[str]:
    """The commands that open what a run left behind."""
    home, tools = settings.home, Path(sys.executable).parent
    if tools.is_relative_to(Path.cwd()):
        tools = tools.relative_to(Path.cwd())
    anywhere = home if home.is_absolute() else f"$PWD/{home}"
    return [
        f"{tools}/lightning-flows sql --home {home}    # the catalog in DuckDB, and what can be asked",
        f"{tools}/mlflow ui --backend-store-uri {tracking_uri(settings)}    # metrics and versions",
        f"PREFECT_HOME={anywhere}/prefect {tools}/prefect server start    # flow runs, progress, tables",
    ]


def table(rows: list[dict[str, Any]], title: str) -> Table:
    """The epochs of a run as a table for the terminal."""
    shown = Table(
        title=title, caption="right: share of the held-out tasks after the epoch; seconds by stage", box=SIMPLE
    )
    for column in ("epoch", "reward", "right", "rollouts", "calls", "sequences", "tokens", "version"):
        shown.add_column(column, justify="right", no_wrap=True)
    for stage in dict.fromkeys(_STAGES.values()):
        shown.add_column(stage, justify="right", no_wrap=True)
    for row in rows:
        seconds: dict[str, float] = {}
        for stage, took in row["seconds"].items():
            name = _STAGES.get(stage.split(" ")[0], "")
            seconds[name] = seconds.get(name, 0.0) + took
        tokens = None if row["prompt_tokens"] is None else row["prompt_tokens"] + row["response_tokens"]
        shown.add_row(
            "before" if row["epoch"] < 0 else str(row["epoch"]),
            _number(row["mean_reward"], ".3f"),
            _number(row["held_out_right"], ".1%"),
            _number(row["rollouts"]),
            _number(row["calls"]),
            _number(row["sequences"]),
            _number(tokens, ","),
            ", ".join(row["versions"].values()),
            *(_number(seconds.get(stage), ".1f") for stage in dict.fromkeys(_STAGES.values())),
        )
    return shown


def _number(value: Any, form: str = "") -> str:
    return "" if value is None else format(value, form)
