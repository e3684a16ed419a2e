"""The record of an epoch: its signals to every backend, and artifacts in the Prefect UI."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from lightning_core.config import Settings
from lightning_core.events import Rows, shown
from lightning_core.lake.held_out import held_out
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.lake.report import epoch_rows
from lightning_core.lake.stages import run_stage
from lightning_core.policies.store import PolicyStore
from lightning_core.stage_keys import record_key
from lightning_core.tracking.mlflow_backend import MlflowRun
from lightning_core.tracking.signals import Signal, backends, epoch_signals
from tasks.progress import logger
from tasks.show import show_run
from tasks.versions import note_evaluation


@task(task_run_name="record {epoch.mode} {epoch.epoch}", cache_policy=NO_CACHE, persist_result=False)
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
        when = f"after epoch {row['epoch']}" if epoch.epoch else "before training"
        return f"held-out {when}: {held_out(Lake(settings.home), epoch)}"
    if row["mean_reward"] is None:
        return f"epoch {epoch.epoch}: no rollout has a reward"
    return f"epoch {epoch.epoch}: mean reward {row['mean_reward']:.3f} of {row['rollouts']} rollouts"


def _to_mlflow(settings: Settings, epoch: EpochManifest, row: dict[str, Any], signals: list[Signal]) -> dict[str, Any]:
    tracked = MlflowRun(settings)
    tracked.tag(
        **{
            "prefect.flow_run_id": str(flow_run.get_id()),
            "prefect.flow_run_name": str(flow_run.get_name()),
            "prefect.flow_run_url": str(flow_run.get_flow_run_ui_url()),
        }
    )
    tracked.tell(epoch, signals)
    if epoch.mode == "train":
        tracked.metrics(_counts(row), epoch.epoch)
    label = f"epochs/{epoch.epoch:04d}" if epoch.mode == "train" else f"epochs/{epoch.epoch:04d}-evaluate"
    tracked.document(settings.model_dump(mode="json"), f"{label}/settings.json")
    tracked.document(
        {"span_range": epoch.span_range, "tables": {n: t.model_dump() for n, t in epoch.tables.items()}},
        f"{label}/dataset.json",
    )
    _versions(settings, epoch, tracked)
    logger().info("MLflow run %s has %s %d", tracked.run_id, epoch.mode, epoch.epoch)
    return {"mlflow_run_id": tracked.run_id, "mlflow": tracked.link()}


def _counts(row: dict[str, Any]) -> dict[str, float]:
    """What an epoch collected, over all policies."""
    left_out = {"seconds", "versions", "run", "epoch"}
    return {k: v for k, v in row.items() if k not in left_out and not k.startswith("held_out") and v is not None}


def _versions(settings: Settings, epoch: EpochManifest, tracked: MlflowRun) -> None:
    for policy in settings.policies:
        store, done = PolicyStore(settings.home, policy.name), epoch.stages.get(f"train {policy.name}")
        if done is not None and done.output["version"] != epoch.versions[policy.name]:
            tracked.version(store, done.output["version"])
        tracked.aliases(store)
