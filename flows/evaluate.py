"""The policies of a run on the held-out tasks, with the agent's own sampling.

prefect deployment run evaluate/local
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from lightning_core.config import Settings, SettingsError
from lightning_core.lake.lake import Lake
from lightning_core.lake.report import epoch_rows
from lightning_core.services import running, versions
from lightning_core.taskset import plan_evaluation
from tasks.alarm import watch
from tasks.collect import collect
from tasks.derive import derive_tables
from tasks.preflight import check, evaluation_tasks
from tasks.progress import logger, say
from tasks.redeploy import redeploy
from tasks.track import record


@flow(
    name="evaluate",
    flow_run_name="{settings.run} evaluation",
    task_runner=ThreadPoolTaskRunner(max_workers=16),  # type: ignore[arg-type]
    persist_result=False,
)
def evaluate(settings: Settings, epoch: int | None = None) -> dict[str, Any]:
    """Evaluate the versions that `epoch` epochs of training came to (null: all that are finished).

    Returns `{"epoch", "tasks", "right" (share, 0 to 1), "reward" (mean)}`.
    """
    if settings.tasks.evaluate is None:
        raise SettingsError("tasks.evaluate is not set: give held-out tasks to evaluate on")
    lake = Lake(settings.home)
    number = lake.manifests.next_epoch(settings.run) if epoch is None else epoch
    check(settings)
    with lake.working_on(settings.run), running(settings, say("services")) as services:
        manifest = lake.open_epoch(settings.run, number, "evaluate", versions(settings, number))
        redeploy(settings, services, manifest.versions)
        collect(settings, manifest, plan_evaluation(settings, evaluation_tasks(settings), number))
        derive_tables(settings, manifest)
        record(settings, manifest)
        watch(settings, number, services)
    row = next(r for r in epoch_rows(settings) if r["epoch"] == number - 1)
    log = logger()
    log.info(
        "held-out: %.1f%% of %d tasks right, mean reward %.3f",
        100 * row["held_out_right"],
        row["held_out_tasks"],
        row["held_out_reward"],
    )
    return {
        "epoch": number,
        "tasks": row["held_out_tasks"],
        "right": row["held_out_right"],
        "reward": row["held_out_reward"],
    }
