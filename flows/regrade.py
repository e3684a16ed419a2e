"""Grade recorded rollouts again: another grader, another weight, another rule, without a rollout.

lightning-flows regrade settings.yaml
"""

from __future__ import annotations

from typing import Any

import duckdb
from prefect import flow

from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.services import gateway_running
from lightning_core.lake.manifest import LakeError
from lightning_flows.flows.parameters import NO_OVERRIDES, GivenSettings, Overrides, run_name
from lightning_flows.flows.run import begin_run
from lightning_flows.tasks.derive import derive_tables
from lightning_flows.tasks.ingest import reward
from lightning_flows.tasks.progress import say


@flow(name="regrade", flow_run_name=run_name("{run} regrade"))
def regrade(
    settings: GivenSettings, epoch: int | None = None, overrides: Overrides = NO_OVERRIDES
) -> list[dict[str, Any]]:
    """Grade and derive the run's finished epochs again (or only `epoch`) by the current settings.

    Attempts that this grader has graded already are not graded again. Returns one row per epoch: epoch, mode, graded,
    invalid, and the mean reward before and after. Nothing is trained; `train-epoch --epoch N` does that, on the new rewards.
    """
    run = begin_run(settings, overrides, "regrade")
    with run.lake.working_on(run.run), gateway_running(run, say("services")):
        return [_again(found) for found in _sealed(run, epoch)]


def _sealed(run: Run, epoch: int | None) -> list[Epoch]:
    sealed = [m for m in run.lake.manifests.epochs(run.run) if m.sealed_offset is not None]
    chosen = [m for m in sealed if epoch in (None, m.epoch)]
    if not chosen:
        known = ", ".join(m.named for m in sealed) or "none"
        wanted = "an epoch" if epoch is None else f"epoch {epoch}"
        raise LakeError(f"run {run.run!r} in {run.home} has not rolled out {wanted} yet; rolled out are: {known}")
    return [run.at(m) for m in chosen]


def _again(epoch: Epoch) -> dict[str, Any]:
    before, grades = _mean_reward(epoch), reward(epoch)
    derive_tables(epoch)
    return {
        "epoch": epoch.number,
        "mode": epoch.mode,
        "graded": grades.get("graded", 0),
        "invalid": grades.get("invalid", 0),
        "before": before,
        "after": _mean_reward(epoch),
    }


def _mean_reward(epoch: Epoch) -> float | None:
    """Return the mean reward of the rollouts that have one; None where none has, or nothing is derived."""
    if "rollout_rewards" not in epoch.manifest.tables:
        return None
    row = duckdb.execute("SELECT avg(reward) FROM read_parquet(?)", [epoch.table("rollout_rewards")]).fetchone()
    return None if row is None else row[0]
