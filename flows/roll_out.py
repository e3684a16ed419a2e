"""The rollouts, rewards and sequences of an epoch and nothing more, to look at them before anything is trained.

prefect deployment run roll-out/local
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from lightning_core.epoch.finetune import require_own_rollouts
from lightning_core.epoch.patterns import settle
from lightning_core.epoch.plan import plan_training
from lightning_core.epoch.services import running
from lightning_core.epoch.stages import Stage
from lightning_flows.flows.parameters import NO_OVERRIDES, GivenSettings, Overrides, run_name
from lightning_flows.flows.run import SHARDS, begin_run, redo
from lightning_flows.tasks.deploy import deploy
from lightning_flows.tasks.derive import derive_tables
from lightning_flows.tasks.preflight import training_tasks
from lightning_flows.tasks.progress import say
from lightning_flows.tasks.rollouts import roll_out as run_rollouts


@flow(
    name="roll-out",
    flow_run_name=run_name("{run} rollouts"),
    task_runner=SHARDS,
)
def roll_out(
    settings: GivenSettings,
    epoch: int | None = None,
    from_stage: Stage | None = None,
    overrides: Overrides = NO_OVERRIDES,
) -> dict[str, Any]:
    """Run the rollouts of one epoch (null: the first unfinished one); `train-epoch` continues from there."""
    run = begin_run(settings, overrides)
    number = run.next_epoch() if epoch is None else epoch
    sampled = run.versions(number)
    run.require_versions(sampled, f"the rollouts of epoch {number} of run {run.run}")
    with run.lake.working_on(run.run), running(run, say("services")) as services:
        opened = run.open(number, "train", sampled)
        require_own_rollouts(opened.manifest)
        redo(opened, from_stage)
        settle(opened)
        deploy(run, services, opened.manifest.sampled_from)
        run_rollouts(opened, plan_training(run, training_tasks(run.settings.tasks), number))
        derive_tables(opened)
    return {"epoch": number} | opened.manifest.outputs
