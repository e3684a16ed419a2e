"""One epoch, from rollouts to redeploy.

prefect deployment run train-epoch/local
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from lightning_core.epoch.collected import require_own_rollouts
from lightning_core.epoch.patterns import settle
from lightning_core.epoch.plan import plan_training
from lightning_core.epoch.services import require_versions, resting, running, versions
from lightning_core.epoch.stage_keys import outputs
from lightning_core.epoch.stages import Stage, redo_from
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_flows.flows.parameters import (
    NO_OVERRIDES,
    GivenSettings,
    Overrides,
    resolve,
    run_name,
)
from lightning_flows.tasks.alarm import watch
from lightning_flows.tasks.collect import collect
from lightning_flows.tasks.derive import derive_tables
from lightning_flows.tasks.overlap import begins_on, next_rollouts
from lightning_flows.tasks.preflight import begin, training_tasks
from lightning_flows.tasks.progress import logger, say
from lightning_flows.tasks.publish import publish_lake
from lightning_flows.tasks.redeploy import redeploy
from lightning_flows.tasks.track import record, tracked
from lightning_flows.tasks.train import train_policies
from lightning_flows.tasks.versions import collect_versions


@flow(
    name="train-epoch",
    flow_run_name=run_name("{run} epoch {epoch}"),
    task_runner=ThreadPoolTaskRunner(max_workers=16),  # type: ignore[arg-type]
    validate_parameters=True,
    persist_result=False,
)
def train_epoch(
    settings: GivenSettings,
    epoch: int | None = None,
    from_stage: Stage | None = None,
    overrides: Overrides = NO_OVERRIDES,
) -> dict[str, Any]:
    """Train one epoch of a run; `epoch: null` is the first unfinished one.

    With `async_level: 1` the rollouts of the next epoch, if there is one, run during the training.
    An interrupted epoch resumes where it stopped: finished rollouts and stages are not repeated, unless what
    they read has changed, or `from_stage` names the stage to repeat from.
    """
    settings = resolve(settings, overrides)
    begin(settings)
    lake = Lake(settings.home)
    number = lake.manifests.next_epoch(settings.run) if epoch is None else epoch
    planned = plan_training(settings, training_tasks(settings), number)
    with tracked(settings), lake.working_on(settings.run):
        manifest = lake.open_epoch(settings.run, number, "train", versions(settings, number))
        require_own_rollouts(manifest)
        what = f"epoch {number} of run {settings.run}"
        if from_stage is not None:
            require_versions(settings, manifest.versions, what)
            require_versions(settings, manifest.ended_with if from_stage == "record" else {}, what)
            redo_from(lake, manifest, from_stage, f"flow run {flow_run.get_id()}, {from_stage}")
        if outputs(settings, manifest, planned) is not None:
            logger().info("epoch %d of run %s is done, with these settings", number, settings.run)
            return _told(manifest)
        watch(settings, number)
        require_versions(settings, manifest.versions, what)
        require_versions(settings, begins_on(settings, manifest, planned), what)
        with running(settings, say("services")) as services:
            settle(lake, settings, manifest)
            redeploy(settings, services, begins_on(settings, manifest, planned))
            collect(settings, manifest, planned)
            derive_tables(settings, manifest)
            with resting(settings, services), next_rollouts(settings, services, manifest):
                trained = train_policies(settings, manifest)
            redeploy(settings, services, {name: output["version"] for name, output in trained.items()})
            record(settings, manifest)
            publish_lake(settings.home, settings.lake)
            watch(settings, number + 1, services)
            collect_versions(settings)
    return _told(manifest)


def _told(epoch: EpochManifest) -> dict[str, Any]:
    """What each stage of the epoch came to, by its name in the manifest."""
    return {"epoch": epoch.epoch, **{name: stage.output for name, stage in epoch.stages.items()}}
