"""The record of an epoch: its signals to every backend, and artifacts in the Prefect UI; its diagnosis; and how the run ends in MLflow."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
from prefect.exceptions import CancelledRun
from prefect.runtime import deployment, flow_run

from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.held_out import held_out
from lightning_core.epoch.plan import Task
from lightning_core.epoch.report import epoch_rows
from lightning_core.epoch.stage_keys import record_key
from lightning_core.epoch.stages import run_stage
from lightning_core.events import Rows, shown, when
from lightning_core.lake import catalog
from lightning_core.lake.manifest import LakeError, stage_key
from lightning_core.lake.why import diagnose
from lightning_core.process.interrupts import held, watched
from lightning_core.prompts.store import PromptStore
from lightning_core.tracking.mlflow_backend import MlflowRun, Status, is_tracked
from lightning_core.tracking.signals import Signal, backends, epoch_signals
from lightning_flows.tasks.preflight import evaluation_tasks, training_tasks
from lightning_flows.tasks.progress import logger
from lightning_flows.tasks.show import show_findings, show_run
from lightning_flows.tasks.step import step
from lightning_flows.tasks.versions import note_evaluation

_tracked: dict[tuple[Path, str], float] = {}  # (home, run) -> when its flow began, seconds since 1970


@contextlib.contextmanager
def tracked(run: Run) -> Iterator[None]:
    """Record in MLflow how a run goes while the block runs.

    It is RUNNING, then FINISHED, FAILED (an error) or KILLED (Ctrl-C, SIGTERM, cancelled). Of flows within one another
    the outermost counts. A process that was killed outright records nothing: the run is RUNNING there until somebody
    resumes it. An error that an interrupt caused is raised as KeyboardInterrupt.
    """
    key = (run.home.resolve(), run.run)
    if key in _tracked:
        yield
        return
    _tracked[key] = time.time()
    with watched() as interrupts:
        try:
            _status(run, "RUNNING")
            yield
            _status(run, "FINISHED")
        except BaseException as error:
            failed = isinstance(error, Exception) and not isinstance(error, CancelledRun)
            _status(run, "FAILED" if failed and not interrupts.came else "KILLED")
            if failed and interrupts.came:
                raise KeyboardInterrupt from error
            raise
        finally:
            del _tracked[key]


def _status(run: Run, status: Status) -> None:
    if not is_tracked(run.settings.tracking, run.home, run.run):  # before the first record; a new MLflow run is RUNNING
        return
    with contextlib.suppress(LakeError), run.lake.working_on(run.run), held():  # else another process says it
        try:
            MlflowRun(run.settings).status(status)
        except Exception as error:  # noqa: BLE001 - an MLflow server that is away ends no run, and hides no error
            logger().warning("MLflow does not know that run %s is %s: %s", run.run, status, error)


@step("record {epoch.named}")
def record(epoch: Epoch) -> None:
    """Send every backend the signals of an epoch or evaluation, show the run's table in the Prefect UI; its last stage."""
    run_stage(epoch, "record", record_key(epoch.manifest), lambda: _record(epoch))


def _record(epoch: Epoch) -> dict[str, Any]:
    tracking = epoch.settings.tracking
    rows = epoch_rows(epoch)
    number = epoch.number if epoch.mode == "train" else epoch.number - 1
    row = next((r for r in rows if r["epoch"] == number), None)
    if row is None:
        return {}
    if epoch.mode == "evaluate":
        note_evaluation(epoch, row)
    logger().info(_result(epoch, row), extra=shown(Rows(rows)))
    signals = epoch_signals(epoch.lake, epoch.manifest)
    for backend in backends(tracking, epoch.home, logger().info):
        backend.send(epoch.manifest, signals)
    noted = {}
    if "mlflow" in tracking.backends:
        with held():  # a write that an interrupt breaks off leaves its database locked, and nobody could say KILLED
            noted = _to_mlflow(epoch, row, signals)
    show_run(epoch, rows, noted.get("mlflow"))
    tell_why(epoch)
    return noted


def tell_why(epoch: Epoch) -> None:
    """Log what the diagnosis finds of this epoch that is worse than a note, a line each, and show all of it in the Prefect UI.

    A rule that fails ends no epoch. Reads the catalog as it is.
    """
    try:
        with catalog.connect(epoch.lake.root) as con:
            findings = diagnose(con, epoch.run)
    except duckdb.Error as error:
        logger().warning("no diagnosis of %s: %s", epoch.named, error)
        return
    for found in findings:
        if found.severity != "note" and (found.mode, found.epochs[-1]) == (epoch.mode, epoch.number):
            logger().warning("%s: %s: %s", found.severity, found.where, found.what)
    show_findings(epoch, findings)


def _result(epoch: Epoch, row: dict[str, Any]) -> str:
    if epoch.mode == "evaluate":
        return f"held-out {when(epoch.number)}: {held_out(epoch)}"
    if row["mean_reward"] is None:
        return f"epoch {epoch.number}: no rollout has a reward"
    return f"epoch {epoch.number}: mean reward {row['mean_reward']:.3f} of {row['rollouts']} rollouts"


def _to_mlflow(epoch: Epoch, row: dict[str, Any], signals: list[Signal]) -> dict[str, Any]:
    settings, tables = epoch.settings, epoch.manifest.tables
    run = MlflowRun(settings, began=_tracked.get((epoch.home.resolve(), epoch.run)))
    run.tag(
        **{
            "prefect.flow_run_id": str(flow_run.get_id()),
            "prefect.flow_run_name": str(flow_run.get_name()),
            "prefect.flow_run_url": _flow_run_url(epoch.home),
        }
    )
    run.send(epoch.manifest, signals)
    if epoch.mode == "train":
        run.metrics(_counts(row), epoch.number)
    _datasets(epoch, run)
    label = f"epochs/{epoch.number:04d}" + ("" if epoch.mode == "train" else "-evaluate")
    run.document(settings.model_dump(mode="json"), f"{label}/settings.json")
    run.document(
        {"span_range": epoch.manifest.span_range, "tables": {n: t.model_dump() for n, t in tables.items()}},
        f"{label}/dataset.json",
    )
    _versions(epoch, run)
    with catalog.connect(epoch.lake.root) as con:
        sent = run.traces(con, epoch.manifest)
    logger().info("MLflow run %s has %s, and %d of its rollouts as traces", run.run_id, epoch.named, sent)
    return {"mlflow_run_id": run.run_id, "mlflow": run.link()}


def _flow_run_url(home: Path) -> str:
    """Return where the flow run is shown.

    The server of a command ends with it; its record is shown by Prefect's own on 4200.
    """
    url = str(flow_run.get_flow_run_ui_url())
    ours = os.environ.get("PREFECT_HOME") == str((home / "prefect").resolve())
    if ours and not deployment.get_id():
        return urlsplit(url)._replace(netloc="127.0.0.1:4200").geturl()
    return url


def _datasets(epoch: Epoch, run: MlflowRun) -> None:
    """Log the tasks that were rolled out, and the sequences that were trained on, as data sets of the MLflow run."""

    settings, manifest = epoch.settings, epoch.manifest

    def tasks(name: str, source: str, found: list[Task], context: str) -> None:
        run.dataset(name, stage_key([task.content for task in found]), source, len(found), context)

    if epoch.mode == "evaluate" and settings.tasks.evaluate is not None:
        held_out = evaluation_tasks(settings.tasks)[: settings.evaluation.limit]
        tasks("tasks.evaluate", settings.tasks.evaluate, held_out, "evaluation")
    elif epoch.mode == "train":
        if not manifest.sources:  # else nothing of `tasks` was rolled out
            tasks("tasks.train", settings.tasks.train, training_tasks(settings.tasks), "training")
        table = manifest.tables["sequences"]
        run.dataset(
            f"sequences of epoch {epoch.number}", table.digest, epoch.table("sequences"), table.rows, "training"
        )


def _counts(row: dict[str, Any]) -> dict[str, float]:
    """Return the counts of an epoch, over all policies."""
    left_out = {"seconds", "versions", "run", "epoch"}
    return {k: v for k, v in row.items() if k not in left_out and not k.startswith("held_out") and v is not None}


def _versions(epoch: Epoch, run: MlflowRun) -> None:
    for name, store in epoch.policies.items():
        done = epoch.manifest.stages.get(f"train {name}")
        if done is not None and done.output["version"] != epoch.manifest.versions[name]:
            run.version(store, done.output["version"])
        run.aliases(store)
    for name in epoch.manifest.prompt_versions:
        try:
            run.prompts(PromptStore(epoch.home, name))
        except Exception as error:  # noqa: BLE001 - a registry of prompts that MLflow's server lacks ends no run
            logger().warning("MLflow's registry has no new versions of prompt %s: %s", name, error)
