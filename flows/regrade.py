"""Grade recorded rollouts again: another grader, another weight, another rule, without a rollout.

lightning-flows regrade settings.yaml
"""

from __future__ import annotations

from typing import Any

import duckdb
from prefect import flow
from rich.table import Table

from lightning_core.config import Settings
from lightning_core.epoch.services import gateway_running
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError
from lightning_flows.flows.parameters import (
    NO_OVERRIDES,
    GivenSettings,
    Overrides,
    resolve,
    run_name,
)
from lightning_flows.tasks.derive import derive_tables
from lightning_flows.tasks.ingest import grade_rollouts, ingest_spans
from lightning_flows.tasks.preflight import begin
from lightning_flows.tasks.progress import say


@flow(name="regrade", flow_run_name=run_name("{run} regrade"), persist_result=False)
def regrade(
    settings: GivenSettings, epoch: int | None = None, overrides: Overrides = NO_OVERRIDES
) -> list[dict[str, Any]]:
    """Grade and derive the run's finished epochs again (or only `epoch`) by the current settings.

    Attempts that this grader has graded already are not graded again. Returns one row per epoch: epoch, mode, graded,
    invalid, and the mean reward before and after. Nothing is trained; `train-epoch --epoch N` does that, on the new rewards.
    """
    settings = resolve(settings, overrides)
    begin(settings, "regrade")
    lake = Lake(settings.home)
    with lake.working_on(settings.run), gateway_running(settings, say("services")):
        return [_again(settings, lake, manifest) for manifest in _collected(lake, settings.run, epoch)]


def _collected(lake: Lake, run: str, epoch: int | None) -> list[EpochManifest]:
    sealed = [m for m in lake.manifests.epochs(run) if m.sealed_offset is not None]
    chosen = [m for m in sealed if epoch in (None, m.epoch)]
    if not chosen:
        known = ", ".join(f"{m.mode} {m.epoch}" for m in sealed) or "none"
        wanted = "an epoch" if epoch is None else f"epoch {epoch}"
        raise LakeError(f"run {run!r} in {lake.root.parent} has not collected {wanted} yet; collected are: {known}")
    return chosen


def _again(settings: Settings, lake: Lake, manifest: EpochManifest) -> dict[str, Any]:
    before, sealed = _mean_reward(lake, manifest), manifest.sealed_offset
    manifest.sealed_offset = None  # rewards of a former call that was interrupted lie behind it
    ingest_spans(settings)
    grades = grade_rollouts(settings, manifest)
    end = ingest_spans(settings)
    manifest.sealed_offset = end if grades else sealed
    derive_tables(settings, manifest)
    return {
        "epoch": manifest.epoch,
        "mode": manifest.mode,
        "graded": grades.get("graded", 0),
        "invalid": grades.get("invalid", 0),
        "before": before,
        "after": _mean_reward(lake, manifest),
    }


def _mean_reward(lake: Lake, manifest: EpochManifest) -> float | None:
    """Of the rollouts that have a reward; None where none has, or nothing is derived."""
    table = manifest.tables.get("rollout_rewards")
    if table is None:
        return None
    row = duckdb.execute("SELECT avg(reward) FROM read_parquet(?)", [str(lake.path(table))]).fetchone()
    return None if row is None else row[0]


def table(rows: list[dict[str, Any]], title: str) -> Table:
    """The rows of `regrade` for a terminal."""
    shown = Table("epoch", "mode", "graded", "invalid", "mean reward before", "after", title=title)
    for row in rows:
        means = ("–" if row[key] is None else f"{row[key]:.3f}" for key in ("before", "after"))
        shown.add_row(str(row["epoch"]), row["mode"], str(row["graded"]), str(row["invalid"]), *means)
    return shown
