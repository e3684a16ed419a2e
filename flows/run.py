"""How the flows of a run begin, and how an epoch ends, in the one way that they share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from lightning_core.checks.check import Work
from lightning_core.config import Settings
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.services import Services
from lightning_core.epoch.stages import Stage, redo_from
from lightning_flows.flows.parameters import resolve
from lightning_flows.tasks.alarm import watch
from lightning_flows.tasks.preflight import begin
from lightning_flows.tasks.publish import publish_lake
from lightning_flows.tasks.track import record, tracked

# What flows with rollouts run their shards on. Prefect types it for tasks that return futures alone.
SHARDS: Any = ThreadPoolTaskRunner(max_workers=16)


def begin_run(settings: Settings, overrides: dict[str, Any], work: Work = "train") -> Run:
    """Return the run of a flow's settings, with everything checked that the work needs. Raises SettingsError."""
    settings = resolve(settings, overrides)
    begin(settings, work)
    return Run(settings)


@contextlib.contextmanager
def at_work(run: Run) -> Iterator[None]:
    """Hold the run while the block runs, so that one process at a time works on it; record in MLflow how it ends."""
    with tracked(run), run.lake.working_on(run.run):
        yield


def redo(epoch: Epoch, from_stage: Stage | None) -> None:
    """Forget that this stage and those after it were done, once for each flow run that asks for it."""
    if from_stage is not None:
        redo_from(epoch, from_stage, f"flow run {flow_run.get_id()}, {from_stage}")


def close(epoch: Epoch, epochs: int, services: Services | None = None) -> None:
    """End an epoch or evaluation: record it, publish the lake, and stop the run where its alarm sounds after so many epochs."""
    record(epoch)
    publish_lake(epoch.lake, epoch.settings.lake)
    watch(epoch, epochs, services)
