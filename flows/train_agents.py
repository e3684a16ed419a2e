"""Train several policies of one run, all or some of them, and tabulate their results.

prefect deployment run train-agents/local
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from rich.table import Table

from lightning_core.epoch.epoch import Run
from lightning_core.epoch.report import policy_rows
from lightning_flows.flows.parameters import NO_OVERRIDES, GivenSettings, Overrides, resolve, run_name
from lightning_flows.flows.tables import as_table, cell
from lightning_flows.flows.train import train


@flow(name="train-agents", flow_run_name=run_name("{run} agents"), persist_result=False)
def train_agents(
    settings: GivenSettings, only: list[str] | None = None, overrides: Overrides = NO_OVERRIDES
) -> list[dict[str, Any]]:
    """Train the epochs of a run, but only the policies in `only` (null: all); the others stay as they are.

    Returns one dict per epoch and policy: see lightning_core.epoch.report.policy_rows.
    """
    settings = resolve(settings, overrides)
    train(settings.training_only(only or []))
    rows = policy_rows(Run(settings))
    create_table_artifact(
        key=f"policies-{settings.run.lower().replace('_', '-')}",
        table=rows,
        description=f"Policies of run {settings.run}, epoch by epoch",
    )
    return rows


def table(rows: list[dict[str, Any]], title: str) -> Table:
    """Return the results of the policies as a table for the terminal."""
    cells = [
        {
            "epoch": row["epoch"],
            "policy": row["policy"],
            "sampled from": row["version"],
            "trained": row["trained_version"],
            "calls": row["calls"],
            "trained on": row["trained_calls"],
            "sequences": row["sequences"],
            "return": cell(row["mean_return"], ".3f"),
            "lag": row["lag"],
            "why not": row["skipped"],
        }
        for row in rows
    ]
    return as_table(cells, title, "return: mean of what the policy's calls were rewarded with", ("policy", "why not"))
