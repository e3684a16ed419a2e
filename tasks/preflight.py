"""What would fail every rollout is found before the first one."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from lightning_core.agents.grading import check_grader
from lightning_core.config import Settings
from lightning_core.lake.derive_inputs import check_estimators, check_patterns
from lightning_core.lake.redact import Redaction
from lightning_core.policies.sharing import check_gpus
from lightning_core.taskset import Task, load_tasks
from tasks.cluster import check_cluster
from tasks.rollout import shared_runner


@task(task_run_name="check settings", cache_policy=NO_CACHE, persist_result=False)
def check(settings: Settings) -> None:
    """Raise SettingsError for patterns, graders, agents and task sets that cannot work."""
    check_cluster(settings.cluster)
    check_gpus(settings)
    check_patterns(settings)
    check_estimators(settings)
    Redaction.of(settings.lake)
    check_grader(settings.reward.grader)
    training_tasks(settings)
    evaluation_tasks(settings)
    with shared_runner(settings) as runner:
        runner.check()


def training_tasks(settings: Settings) -> list[Task]:
    return load_tasks(settings.tasks.train, settings.tasks.id_field, "tasks.train")


def evaluation_tasks(settings: Settings) -> list[Task]:
    if settings.tasks.evaluate is None:
        return []
    return load_tasks(settings.tasks.evaluate, settings.tasks.id_field, "tasks.evaluate")
