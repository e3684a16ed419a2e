"""The record of an epoch: MLflow, and artifacts in the Prefect UI."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from lightning_core.config import Settings
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.lake.report import epoch_rows
from lightning_core.lake.stages import run_stage
from lightning_core.policies.store import PolicyStore
from lightning_core.stage_keys import record_key
from lightning_core.tracking.mlflow_backend import MlflowRun
from tasks.progress import logger
from tasks.versions import note_evaluation


@task(task_run_name="record {epoch.mode} {epoch.epoch}", cache_policy=NO_CACHE, persist_result=False)
def record(settings: Settings, epoch: EpochManifest) -> None:
    """Log an epoch or an evaluation to MLflow and show the run's table in the Prefect UI; its last stage."""
    run_stage(Lake(settings.home), epoch, "record", record_key(epoch), lambda: _record(settings, epoch))


def _record(settings: Settings, epoch: EpochManifest) -> dict[str, Any]:
    rows = epoch_rows(settings)
    number = epoch.epoch if epoch.mode == "train" else epoch.epoch - 1
    row = next((r for r in rows if r["epoch"] == number), None)
    if row is None:
        return {}
    if epoch.mode == "evaluate":
        note_evaluation(settings, epoch, row)
    tracked = MlflowRun(settings)
    tracked.tag(**{"prefect.flow_run_id": str(flow_run.get_id()), "prefect.flow_run_name": str(flow_run.get_name())})
    tracked.metrics(_metrics(row, epoch), epoch.epoch)
    label = f"epochs/{epoch.epoch:04d}" if epoch.mode == "train" else f"epochs/{epoch.epoch:04d}-evaluate"
    tracked.document(settings.model_dump(mode="json"), f"{label}/settings.json")
    tracked.document(
        {"span_range": epoch.span_range, "tables": {n: t.model_dump() for n, t in epoch.tables.items()}},
        f"{label}/dataset.json",
    )
    _versions(settings, epoch, tracked)
    logger().info("MLflow run %s has %s %d", tracked.run_id, epoch.mode, epoch.epoch)
    create_table_artifact(
        key=f"epochs-{settings.run.lower().replace('_', '-')}",
        table=[{k: v for k, v in r.items() if k != "seconds"} | {"versions": str(r["versions"])} for r in rows],
        description=f"Epochs of run {settings.run}; MLflow run {tracked.run_id}",
    )
    return {"mlflow_run_id": tracked.run_id}


def _metrics(row: dict[str, Any], epoch: EpochManifest) -> dict[str, float]:
    if epoch.mode == "evaluate":
        return {k: row[k] for k in ("held_out_right", "held_out_reward", "held_out_tasks") if row[k] is not None}
    left_out = {"seconds", "versions", "run", "epoch"}
    metrics = {k: v for k, v in row.items() if k not in left_out and not k.startswith("held_out") and v is not None}
    metrics |= {f"seconds/{stage.replace(' ', '_')}": s for stage, s in row["seconds"].items() if stage != "evaluate"}
    for stage, done in epoch.stages.items():
        if stage.startswith("train "):
            policy = stage.removeprefix("train ")
            metrics |= {f"{policy}/{name}": value for name, value in done.output["metrics"].items()}
    return metrics


def _versions(settings: Settings, epoch: EpochManifest, tracked: MlflowRun) -> None:
    for policy in settings.policies:
        store, done = PolicyStore(settings.home, policy.name), epoch.stages.get(f"train {policy.name}")
        if done is not None and done.output["version"] != epoch.versions[policy.name]:
            tracked.version(store, done.output["version"])
        tracked.aliases(store)
