"""Several policies of one run: which of them are trained, and what each came to.

prefect deployment run train-agents/local
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.train import train
from lightning_core.config import Settings, SettingsError
from lightning_core.lake.report import policy_rows


@flow(name="train-agents", flow_run_name="{settings.run} agents", persist_result=False)
def train_agents(settings: Settings, only: list[str] | None = None) -> list[dict[str, Any]]:
    """Train the epochs of a run, of its policies those in `only` (null: all); the others stay as they are.

    Returns one dict per epoch and policy: see lightning_core.lake.report.policy_rows.
    """
    train(select(settings, only))
    rows = policy_rows(settings)
    create_table_artifact(
        key=f"policies-{settings.run.lower().replace('_', '-')}",
        table=rows,
        description=f"Policies of run {settings.run}, epoch by epoch",
    )
    return rows


def select(settings: Settings, only: list[str] | None) -> Settings:
    """The settings with all policies but those in `only` never trained. Raises SettingsError for one that is not there."""
    names = [policy.name for policy in settings.policies]
    for name in only or []:
        if name not in names:
            raise SettingsError(f"there is no policy {name!r} to train; the settings have {', '.join(names)}")
    if not only:
        return settings
    never = {"train_every": 0, "train_offset": 0}
    policies = [p if p.name in only else p.model_copy(update=never) for p in settings.policies]
    return settings.model_copy(update={"policies": policies})
