"""The policies of a run on the held-out tasks, with the agent's own sampling.

prefect deployment run evaluate/local
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from lightning_core.config import SettingsError
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.held_out import held_out
from lightning_core.epoch.plan import plan_evaluation
from lightning_core.epoch.prompts import current_prompts
from lightning_core.epoch.services import Services, running
from lightning_core.epoch.stages import Stage
from lightning_core.events import named, shown
from lightning_core.lake.manifest import stage_key
from lightning_flows.flows.parameters import NO_OVERRIDES, GivenSettings, Overrides, resolve, run_name
from lightning_flows.flows.run import SHARDS, at_work, begin_run, close, redo
from lightning_flows.tasks.deploy import deploy
from lightning_flows.tasks.derive import derive_tables
from lightning_flows.tasks.preflight import begin, evaluation_tasks
from lightning_flows.tasks.progress import logger, say
from lightning_flows.tasks.rollouts import roll_out


@flow(
    name="evaluate",
    flow_run_name=run_name("{run} {evaluation}"),
    task_runner=SHARDS,
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
    if policy_versions or tasks:
        return _beside(Run(resolve(settings, overrides)), epoch, policy_versions or {}, tasks, from_stage)
    run = begin_run(settings, overrides, "evaluate")
    number = run.next_epoch() if epoch is None else epoch
    evaluated = run.versions(number)
    run.require_versions(evaluated, f"the {named('evaluate', number)} of run {run.run}")
    with at_work(run), running(run, say("services")) as services:
        opened = run.open(number, "evaluate", evaluated)
        redo(opened, from_stage)
        _try(opened, services)
        close(opened, number, services)
    return {"epoch": number} | held_out(opened).as_dict()


def _beside(
    run: Run, epoch: int | None, chosen: dict[str, str], tasks: str | None, from_stage: Stage | None
) -> dict[str, Any]:
    """Evaluate other versions or tasks in a run of their own: nothing of `run` itself is touched."""
    wanted = run.versions(run.next_epoch() if epoch is None else epoch)
    if unknown := [name for name in chosen if name not in wanted]:
        raise SettingsError(f"there is no policy {unknown[0]!r} to evaluate; the settings have {', '.join(wanted)}")
    wanted |= chosen
    run.require_versions(wanted, f"the evaluation beside run {run.run}")
    evaluated = run.settings.tasks.model_copy(update={"evaluate": tasks or run.settings.tasks.evaluate})
    prompts = current_prompts(run.settings)
    label = stage_key(wanted, evaluated.evaluate, *([prompts] if prompts else []))[:8]
    own = Run(run.settings.model_copy(update={"run": f"{run.run[:50]}-on-{label}", "tasks": evaluated}))
    begin(own.settings, "evaluate")
    with run.lake.working_on(run.run), own.lake.working_on(own.run), running(own, say("services")) as services:
        served = {name: store.current() for name, store in run.policies.items()}
        opened = own.open(0, "evaluate", wanted)
        redo(opened, from_stage)
        try:
            _try(opened, services)
        finally:
            deploy(run, services, {name: version for name, version in served.items() if version is not None})
    found = held_out(opened)
    logger().info("held-out, beside the run: %s", found, extra=shown())
    return {"run": own.run, "versions": wanted} | found.as_dict()


def _try(epoch: Epoch, services: Services) -> None:
    """Roll out the held-out tasks with the evaluation's versions, and reward them."""
    tasks, limit = evaluation_tasks(epoch.settings.tasks), epoch.settings.evaluation.limit
    planned = plan_evaluation(epoch, tasks, epoch.number)
    if limit is not None:
        logger().info(
            "%d of %d held-out tasks (evaluation.limit: %d)", min(limit, len(tasks)), len(tasks), limit, extra=shown()
        )
    deploy(epoch, services, epoch.manifest.versions)
    roll_out(epoch, planned)
    derive_tables(epoch)
