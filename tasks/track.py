"""The record of an epoch: its signals to every backend, and artifacts in the Prefect UI; and how the run ends in MLflow."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect.exceptions import CancelledRun
from prefect.runtime import deployment, flow_run

from lightning_core.config import Settings
from lightning_core.epoch.held_out import held_out
from lightning_core.epoch.plan import Task
from lightning_core.epoch.report import epoch_rows
from lightning_core.epoch.stage_keys import record_key
from lightning_core.epoch.stages import run_stage
from lightning_core.events import Rows, shown, when
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError, stage_key
from lightning_core.policies.store import PolicyStore
from lightning_core.tracking.mlflow_backend import MlflowRun, Status, is_tracked
from lightning_core.tracking.signals import Signal, backends, epoch_signals
from lightning_flows.tasks.preflight import evaluation_tasks, training_tasks
from lightning_flows.tasks.progress import logger
from lightning_flows.tasks.show import show_run
from lightning_flows.tasks.step import step
from lightning_flows.tasks.versions import note_evaluation

_tracked: dict[tuple[Path, str], float] = {}  # (home, run) -> when its flow began, seconds since 1970


@contextlib.contextmanager
def tracked(settings: Settings) -> Iterator[None]:
    """Round a flow: in MLflow the run is RUNNING, then FINISHED, FAILED (an error) or KILLED (Ctrl-C, SIGTERM, cancelled).

    Of flows within one another the outermost counts. A process that was killed outright says nothing: the run is RUNNING
    there until somebody resumes it.
    """
    key = (settings.home.resolve(), settings.run)
    if key in _tracked:
        yield
        return
    _tracked[key] = time.time()
    try:
        _status(settings, "RUNNING")
        yield
        _status(settings, "FINISHED")
    except BaseException as error:
        failed = isinstance(error, Exception) and not isinstance(error, CancelledRun)
        _status(settings, "FAILED" if failed else "KILLED")
        raise
    finally:
        del _tracked[key]


def _status(settings: Settings, status: Status) -> None:
    if not is_tracked(settings):  # before the first record; a new MLflow run is RUNNING
        return
    with contextlib.suppress(LakeError), Lake(settings.home).working_on(settings.run):  # else another process says it
        try:
            MlflowRun(settings).status(status)
        except Exception as error:  # noqa: BLE001 - an MLflow server that is away ends no run, and hides no error
            logger().warning("MLflow does not know that run %s is %s: %s", settings.run, status, error)


@step("record {epoch.mode} {epoch.epoch}")
def record(settings: Settings, epoch: EpochManifest) -> None:
    """Tell every backend the signals of an epoch or evaluation, show the run's table in the Prefect UI; its last stage."""
    run_stage(Lake(settings.home), epoch, "record", record_key(epoch), lambda: _record(settings, epoch))


def _record(settings: Settings, epoch: EpochManifest) -> dict[str, Any]:
    rows = epoch_rows(settings)
    number = epoch.epoch if epoch.mode == "train" else epoch.epoch - 1
    row = next((r for r in rows if r["epoch"] == number), None)
    if row is None:
        return {}
    if epoch.mode == "evaluate":
        note_evaluation(settings, epoch, row)
    logger().info(_came_to(settings, epoch, row), extra=shown(Rows(rows)))
    signals = epoch_signals(Lake(settings.home), epoch)
    for backend in backends(settings, logger().info):
        backend.tell(epoch, signals)
    noted = _to_mlflow(settings, epoch, row, signals) if "mlflow" in settings.tracking.backends else {}
    show_run(settings, rows, noted.get("mlflow"))
    return noted


def _came_to(settings: Settings, epoch: EpochManifest, row: dict[str, Any]) -> str:
    if epoch.mode == "evaluate":
        return f"held-out {when(epoch.epoch)}: {held_out(Lake(settings.home), epoch)}"
    if row["mean_reward"] is None:
        return f"epoch {epoch.epoch}: no rollout has a reward"
    return f"epoch {epoch.epoch}: mean reward {row['mean_reward']:.3f} of {row['rollouts']} rollouts"


def _to_mlflow(settings: Settings, epoch: EpochManifest, row: dict[str, Any], signals: list[Signal]) -> dict[str, Any]:
    run = MlflowRun(settings, began=_tracked.get((settings.home.resolve(), settings.run)))
    run.tag(
        **{
            "prefect.flow_run_id": str(flow_run.get_id()),
            "prefect.flow_run_name": str(flow_run.get_name()),
            "prefect.flow_run_url": _flow_run_url(settings),
        }
    )
    run.tell(epoch, signals)
    if epoch.mode == "train":
        run.metrics(_counts(row), epoch.epoch)
    _datasets(settings, epoch, run)
    label = f"epochs/{epoch.epoch:04d}" if epoch.mode == "train" else f"epochs/{epoch.epoch:04d}-evaluate"
    run.document(settings.model_dump(mode="json"), f"{label}/settings.json")
    run.document(
        {"span_range": epoch.span_range, "tables": {n: t.model_dump() for n, t in epoch.tables.items()}},
        f"{label}/dataset.json",
    )
    _versions(settings, epoch, run)
    logger().info("MLflow run %s has %s %d", run.run_id, epoch.mode, epoch.epoch)
    return {"mlflow_run_id": run.run_id, "mlflow": run.link()}


def _flow_run_url(settings: Settings) -> str:
    """Where the flow run is shown. The server of a command ends with it; its record is shown by Prefect's own on 4200."""
    url = str(flow_run.get_flow_run_ui_url())
    ours = os.environ.get("PREFECT_HOME") == str((settings.home / "prefect").resolve())
    if ours and not deployment.get_id():
        return urlsplit(url)._replace(netloc="127.0.0.1:4200").geturl()
    return url


def _datasets(settings: Settings, epoch: EpochManifest, run: MlflowRun) -> None:
    """Tasks that were rolled out, and the sequences that were trained on."""

    def tasks(name: str, source: str, found: list[Task], context: str) -> None:
        run.dataset(name, stage_key([task.content for task in found]), source, len(found), context)

    if epoch.mode == "evaluate" and settings.tasks.evaluate is not None:
        held_out = evaluation_tasks(settings)[: settings.evaluation.limit]
        tasks("tasks.evaluate", settings.tasks.evaluate, held_out, "evaluation")
    elif epoch.mode == "train":
        if not epoch.sources:  # else nothing of `tasks` was rolled out
            tasks("tasks.train", settings.tasks.train, training_tasks(settings), "training")
        table = epoch.tables["sequences"]
        place = str(Lake(settings.home).path(table))
        run.dataset(f"sequences of epoch {epoch.epoch}", table.digest, place, table.rows, "training")


def _counts(row: dict[str, Any]) -> dict[str, float]:
    """What an epoch collected, over all policies."""
    left_out = {"seconds", "versions", "run", "epoch"}
    return {k: v for k, v in row.items() if k not in left_out and not k.startswith("held_out") and v is not None}


def _versions(settings: Settings, epoch: EpochManifest, run: MlflowRun) -> None:
    for policy in settings.policies:
        store, done = PolicyStore(settings.home, policy.name), epoch.stages.get(f"train {policy.name}")
        if done is not None and done.output["version"] != epoch.versions[policy.name]:
            run.version(store, done.output["version"])
        run.aliases(store)
