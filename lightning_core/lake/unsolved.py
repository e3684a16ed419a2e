"""What an epoch's rollouts left unsolved, for the next epoch's plan."""

from __future__ import annotations

from lightning_core.lake import sql
from lightning_core.lake.lake import Lake


def unsolved_shares(lake: Lake, run: str, epoch: int) -> dict[str, float]:
    """Task id → share of its rollouts that did not solve it, above 0 to 1, in order of the ids.

    Of a training epoch; empty where it is not derived.
    """
    manifest = lake.manifests.epoch(run, epoch)
    if manifest is None or "rollout_rewards" not in manifest.tables:
        return {}
    with lake.engine() as con:
        con.read_parquet(str(lake.path(manifest.tables["rollout_rewards"]))).create_view("rollout_rewards")
        return dict(con.execute(sql.text("plan/unsolved_shares")).fetchall())
