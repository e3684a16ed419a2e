"""The policies of a run on the held-out tasks, with the agent's own sampling.

prefect deployment run evaluate/local
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from lightning_core.config import Settings, SettingsError
from lightning_core.epoch.held_out import held_out
from lightning_core.epoch.plan import plan_evaluation
from lightning_core.epoch.services import require_versions, running, versions
from lightning_core.epoch.stages import Stage, redo_from
from lightning_core.events import shown
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, stage_key
from lightning_core.policies.store import PolicyStore
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
from lightning_flows.tasks.preflight import begin, evaluation_tasks
from lightning_flows.tasks.progress import logger, say
from lightning_flows.tasks.publish import publish_lake
from lightning_flows.tasks.redeploy import redeploy
from lightning_flows.tasks.track import record, tracked


@flow(
    name="evaluate",
    flow_run_name=run_name("{run} evaluation after {epoch} epochs"),
    task_runner=ThreadPoolTaskRunner(max_workers=16),  # type: ignore[arg-type]
    persist_result=False,
)
def evaluate(
    settings: GivenSettings,
    epoch: int | None = None,
    policy_versions: dict[str, str] | None = None,
    tasks: str | None = None,
    from_stage: Stage | None = None,
    overrides: Overrides = NO_OVERRIDES,
) -> dict[str, Any]:
    """Evaluate the versions after `epoch` epochs of training (null: after all that are finished).

    With `policy_versions` (policy → version) or `tasks` (as `tasks.evaluate`) the evaluation is a run of its own:
    it changes neither `best` nor the served version.
    Returns `epoch`, and what lightning_core.epoch.held_out returns: tasks, rollouts, right (0 to 1), interval, reward,
    reward_interval, pass_at.
    """
    settings = resolve(settings, overrides)
    if policy_versions or tasks:
        return _beside(settings, epoch, policy_versions or {}, tasks, from_stage)
    begin(settings, "evaluate")
    lake = Lake(settings.home)
    number = lake.manifests.next_epoch(settings.run) if epoch is None else epoch
    evaluated = versions(settings, number)
    require_versions(settings, evaluated, f"the evaluation after {number} epochs of run {settings.run}")
    with tracked(settings), lake.working_on(settings.run), running(settings, say("services")) as services:
        manifest = lake.open_epoch(settings.run, number, "evaluate", evaluated)
        _again(lake, manifest, from_stage)
        redeploy(settings, services, manifest.versions)
        collect(settings, manifest, plan_evaluation(settings, evaluation_tasks(settings), number))
        derive_tables(settings, manifest)
        record(settings, manifest)
        publish_lake(settings.home, settings.lake)
        watch(settings, number, services)
    return {"epoch": number} | held_out(lake, manifest).as_dict()


def _beside(
    settings: Settings, epoch: int | None, chosen: dict[str, str], tasks: str | None, from_stage: Stage | None
) -> dict[str, Any]:
    """An evaluation of other versions or tasks: nothing of the run's own is touched."""
    lake = Lake(settings.home)
    wanted = versions(settings, lake.manifests.next_epoch(settings.run) if epoch is None else epoch)
    if unknown := [name for name in chosen if name not in wanted]:
        raise SettingsError(f"there is no policy {unknown[0]!r} to evaluate; the settings have {', '.join(wanted)}")
    wanted |= chosen
    require_versions(settings, wanted, f"the evaluation beside run {settings.run}")
    label = stage_key(wanted, tasks or settings.tasks.evaluate)[:8]
    own = settings.model_copy(
        update={
            "run": f"{settings.run[:50]}-on-{label}",
            "tasks": settings.tasks.model_copy(update={"evaluate": tasks or settings.tasks.evaluate}),
        }
    )
    begin(own, "evaluate")
    planned = plan_evaluation(own, evaluation_tasks(own), 0)
    with lake.working_on(settings.run), lake.working_on(own.run), running(own, say("services")) as services:
        served = {policy.name: PolicyStore(settings.home, policy.name).current() for policy in settings.policies}
        manifest = lake.open_epoch(own.run, 0, "evaluate", wanted)
        _again(lake, manifest, from_stage)
        try:
            redeploy(own, services, wanted)
            collect(own, manifest, planned)
            derive_tables(own, manifest)
        finally:
            redeploy(settings, services, {name: version for name, version in served.items() if version is not None})
    found = held_out(lake, manifest)
    logger().info("held-out, beside the run: %s", found, extra=shown())
    return {"run": own.run, "versions": wanted} | found.as_dict()


def _again(lake: Lake, manifest: EpochManifest, from_stage: Stage | None) -> None:
    if from_stage is not None:
        redo_from(lake, manifest, from_stage, f"flow run {flow_run.get_id()}, {from_stage}")
