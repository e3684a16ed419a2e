"""Train several policies of one run, all or some of them, and tabulate their results.

prefect deployment run train-agents/local
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from rich.box import SIMPLE
from rich.table import Table

from lightning_core.epoch.epoch import Run
from lightning_core.epoch.report import policy_rows
from lightning_flows.flows.parameters import NO_OVERRIDES, GivenSettings, Overrides, resolve, run_name
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
    shown = Table(title=title, caption="return: mean of what the policy's calls were rewarded with", box=SIMPLE)
    for column in (
        "epoch",
        "policy",
        "sampled from",
        "trained",
        "calls",
        "trained on",
        "sequences",
        "return",
        "lag",
        "why not",
    ):
        shown.add_column(
            column, justify="left" if column in ("policy", "why not") else "right", no_wrap=column != "why not"
        )
    for row in rows:
        shown.add_row(
            str(row["epoch"]),
            row["policy"],
            row["version"],
            row["trained_version"] or "",
            str(row["calls"]),
            str(row["trained_calls"]),
            str(row["sequences"]),
            "" if row["mean_return"] is None else f"{row['mean_return']:.3f}",
            "" if row["lag"] is None else str(row["lag"]),
            row["skipped"] or "",
        )
    return shown
