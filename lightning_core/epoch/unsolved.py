"""What an epoch's rollouts left unsolved, for the next epoch's plan."""

from __future__ import annotations

from lightning_core.lake import sql
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest


def unsolved_shares(lake: Lake, epoch: EpochManifest) -> dict[str, float] | None:
    """Task id → share of its rollouts that did not solve it, above 0 to 1, in order of the ids.

    Of a training epoch; None where it is not derived.
    """
    if "rollout_rewards" not in epoch.tables:
        return None
    with lake.engine() as con:
        con.read_parquet(str(lake.path(epoch.tables["rollout_rewards"]))).create_view("rollout_rewards")
        return dict(con.execute(sql.text("plan/unsolved_shares")).fetchall())
