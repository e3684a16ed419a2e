"""The rollouts of an epoch and nothing more: graded and derived, to look at them before anything is trained.

prefect deployment run collect/local
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from lightning_core.epoch.collected import require_own_rollouts
from lightning_core.epoch.patterns import settle
from lightning_core.epoch.plan import plan_training
from lightning_core.epoch.services import require_versions, running, versions
from lightning_core.epoch.stages import Stage, redo_from
from lightning_core.lake.lake import Lake
from lightning_flows.flows.parameters import (
    NO_OVERRIDES,
    GivenSettings,
    Overrides,
    resolve,
    run_name,
)
from lightning_flows.tasks.collect import collect as collect_rollouts
from lightning_flows.tasks.derive import derive_tables
from lightning_flows.tasks.preflight import begin, training_tasks
from lightning_flows.tasks.progress import say
from lightning_flows.tasks.redeploy import redeploy


@flow(
    name="collect",
    flow_run_name=run_name("{run} rollouts"),
    task_runner=ThreadPoolTaskRunner(max_workers=16),  # type: ignore[arg-type]
    persist_result=False,
)
def collect(
    settings: GivenSettings,
    epoch: int | None = None,
    from_stage: Stage | None = None,
    overrides: Overrides = NO_OVERRIDES,
) -> dict[str, Any]:
    """Run the rollouts of one epoch (null: the first unfinished one); `train-epoch` continues from there."""
    settings = resolve(settings, overrides)
    begin(settings)
    lake = Lake(settings.home)
    number = lake.manifests.next_epoch(settings.run) if epoch is None else epoch
    sampled = versions(settings, number)
    require_versions(settings, sampled, f"the rollouts of epoch {number} of run {settings.run}")
    with lake.working_on(settings.run), running(settings, say("services")) as services:
        manifest = lake.open_epoch(settings.run, number, "train", sampled)
        require_own_rollouts(manifest)
        if from_stage is not None:
            redo_from(lake, manifest, from_stage, f"flow run {flow_run.get_id()}, {from_stage}")
        settle(lake, settings, manifest)
        redeploy(settings, services, manifest.sampled_from)
        collected = collect_rollouts(settings, manifest, plan_training(settings, training_tasks(settings), number))
        rows = derive_tables(settings, manifest)
    return {"epoch": number, "collected": collected, "rows": rows}
