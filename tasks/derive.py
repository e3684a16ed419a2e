"""Spans to training sequences, in SQL."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from lightning_core.config import Settings
from lightning_core.lake.derive import derive
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.lake.patterns import require_apart
from lightning_core.lake.stages import run_stage
from lightning_core.stage_keys import triplets_key
from tasks.progress import logger, say


@task(task_run_name="derive {epoch.mode} {epoch.epoch}", cache_policy=NO_CACHE, persist_result=False)
def derive_tables(settings: Settings, epoch: EpochManifest) -> dict[str, int]:
    """Run the SQL of the epoch; returns rows by table. Raises SettingsError where policies' patterns overlap on an agent."""
    lake = Lake(settings.home)
    key = triplets_key(settings, epoch)
    rows = run_stage(lake, epoch, "derive", key, lambda: derive(lake, epoch, settings, key, say("sql")))
    lake.rebuild_catalog()
    if epoch.mode == "train":
        require_apart(lake, epoch)
    if rows.get("silent_rollouts"):
        logger().warning(
            "%d rollouts called no policy (table silent_rollouts): do they use OPENAI_BASE_URL, and one of the model names %s?",
            rows["silent_rollouts"],
            ", ".join(p.name for p in settings.policies),
        )
    for table, columns in (("bad_rewards", "name, value, reason, rollout_id, span_id"), ("unmatched_settings", "*")):
        if rows.get(table):
            logger().warning(
                "%d %s; the first: %s", rows[table], table.replace("_", " "), _first(lake, epoch, table, columns)
            )
    return rows


def _first(lake: Lake, epoch: EpochManifest, table: str, columns: str) -> str:
    with lake.connect(epoch.span_range) as con:
        relation = con.read_parquet(str(lake.path(epoch.tables[table]))).select(columns).limit(5)
        rows = [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
    return "; ".join(", ".join(f"{k} {v}" for k, v in row.items() if k not in ("run", "epoch")) for row in rows)
