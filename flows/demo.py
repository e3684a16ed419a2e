"""The main job on the embedded default: a real LLM gets better at the calculator example, by one command.

make demo
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.train import train
from lightning_core.config import Settings
from lightning_core.files import write_atomic
from lightning_core.lake.report import epoch_rows
from lightning_core.monitor import PeakMemory

logger = logging.getLogger(__name__)

_STAGES = ("collect", "derive", "train", "record", "evaluate")


def demo(settings: Settings, report: Path, fresh: bool = False) -> None:
    """Run flow `train`, print its table, write it to `report`.

    A finished demo is begun anew; one that was interrupted goes on, unless `fresh`.
    """
    finished = report.is_file() and json.loads(report.read_text()).get("home") == str(settings.home)
    if settings.home.exists() and (fresh or finished):
        logger.info("a former demo in %s is removed", settings.home)
        shutil.rmtree(settings.home)
    report.unlink(missing_ok=True)
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
    console = Console()
    console.print(table(rows, f"{settings.run}: {len(rows) - 1} epochs, held-out share right after each"))
    console.print(
        f"{time.monotonic() - began:.0f} s in all, {memory.peak_bytes / 1e9:.1f} GB at the peak; this table: {report}"
    )
    console.print("\nLook further:", *look_further(settings), sep="\n  ", highlight=False, soft_wrap=True)


def look_further(settings: Settings) -> list[str]:
    """The commands that open what a run left behind."""
    home = settings.home
    return [
        f"lightning-flows sql --home {home}                       the catalog in DuckDB: what can be asked",
        f"mlflow ui --backend-store-uri sqlite:///{home}/mlflow.db --port 5000      metrics and versions",
        f"PREFECT_HOME={home}/prefect prefect server start        the flow runs, with progress and tables",
    ]


def table(rows: list[dict[str, Any]], title: str) -> Table:
    """The epochs of a run as a table for the terminal."""
    shown = Table(title=title)
    for column in ("epoch", "mean reward", "held-out right", "rollouts", "calls", "sequences", "tokens", "version"):
        shown.add_column(column, justify="right")
    for stage in _STAGES:
        shown.add_column(f"{stage} s", justify="right")
    for row in rows:
        seconds: dict[str, float] = {}
        for stage, took in row["seconds"].items():
            name = stage.split(" ")[0]
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
            *(_number(seconds.get(stage), ".1f") for stage in _STAGES),
        )
    return shown


def _number(value: Any, form: str = "") -> str:
    return "" if value is None else format(value, form)
