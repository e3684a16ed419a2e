"""The main job on the embedded default: a real LLM gets better at the calculator example, by one command.

make demo
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.report import epoch_rows
from lightning_core.files import write_atomic
from lightning_core.process.monitor import PeakMemory
from lightning_core.tracking.page import weighs
from lightning_flows.flows.tables import as_table, cell
from lightning_flows.flows.train import train

_STAGES = {"rollouts": "rollout", "rewards": "rollout", "sequences": "sql", "train": "train", "evaluate": "evaluate"}
_WIDE, _WIDE_UNIFORM = 110, 122  # characters that the whole table takes


def demo(settings: Settings, report: Path) -> str:
    """Run flow `train`, write its figures to `report`; returns a line on the time and the memory that it took."""
    began = time.monotonic()
    with PeakMemory() as memory:
        train(settings)
    rows = epoch_rows(Run(settings))
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
    return (
        f"{time.monotonic() - began:.0f} s in all. Memory at the peak: {memory.peak_bytes / 1e9:.1f} GB over all processes "
        f"(PSS: what they share is counted once). The figures: {report}"
    )


def table(rows: list[dict[str, Any]], title: str, width: int = 140) -> Table:
    """Return the epochs of a run as a table for the terminal; a narrow one has all stages' seconds in one column."""
    uniform = weighs(rows)
    wide = width >= (_WIDE_UNIFORM if uniform else _WIDE)
    caption = "right: share of the held-out tasks after the epoch; "
    if uniform:
        caption = (
            "uniform: the reward if all tasks had been drawn alike. Those not solved yet are drawn more often, so the reward may fall "
            "while right rises. " + caption
        )
    stages = tuple(dict.fromkeys(_STAGES.values()))
    rewards = ("reward", "uniform") if uniform else ("reward",)
    counts = ("rollouts", "calls", "sequences", "tokens", "version") if wide else ("rollouts", "version")
    columns = ("epoch", *rewards, "right", *counts, *(stages if wide else ("seconds",)))
    caption += "seconds by stage" if wide else "seconds of all stages"
    return as_table(({name: _cells(row)[name] for name in columns} for row in rows), title, caption)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """Return what the table may show of an epoch, by column."""
    seconds = dict.fromkeys(_STAGES.values(), 0.0)
    for stage, took in row["seconds"].items():
        if name := _STAGES.get(stage.split(" ")[0]):
            seconds[name] += took
    tokens = None if row["prompt_tokens"] is None else row["prompt_tokens"] + row["response_tokens"]
    return {
        "epoch": "before" if row["epoch"] < 0 else str(row["epoch"]),
        "reward": cell(row["mean_reward"], ".3f"),
        "uniform": cell(row.get("reward_uniform"), ".3f"),
        "right": cell(row["held_out_right"], ".1%"),
        "rollouts": cell(row["rollouts"]),
        "calls": cell(row["calls"]),
        "sequences": cell(row["sequences"]),
        "tokens": cell(tokens, ","),
        "version": ", ".join(row["versions"].values()),
        "seconds": cell(sum(row["seconds"].values()), ".1f"),
    } | {stage: cell(took or None, ".1f") for stage, took in seconds.items()}
