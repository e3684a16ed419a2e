"""What a flow does first: find all that would end it later."""

from __future__ import annotations

from prefect.settings import PREFECT_API_URL

from lightning_core.checks.check import Work, require
from lightning_core.config import Settings, TaskSettings
from lightning_core.epoch.task_file import Task, load_tasks
from lightning_flows.tasks.progress import logger


def begin(settings: Settings, work: Work = "train") -> None:
    """Check everything that the work needs, and make the agent's environment where it has to be made.

    Raises one SettingsError that lists all that is wrong. What a command of this process, or the flow around this one, has
    found in order is not looked at again.
    """
    log = logger()
    require(settings, work, api=PREFECT_API_URL.value(), build=True, say=log.info, warn=log.warning)


def training_tasks(tasks: TaskSettings) -> list[Task]:
    return load_tasks(tasks.train, "tasks.train")


def evaluation_tasks(tasks: TaskSettings) -> list[Task]:
    return [] if tasks.evaluate is None else load_tasks(tasks.evaluate, "tasks.evaluate")
