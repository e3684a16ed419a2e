"""What a run's epochs came to, from the catalog and the manifests."""

from __future__ import annotations

from typing import Any

import duckdb

from lightning_core.config import Settings
from lightning_core.lake import catalog, sql
from lightning_core.lake.derived_tables import EMPTY
from lightning_core.lake.lake import Lake


def epoch_rows(settings: Settings) -> list[dict[str, Any]]:
    """One dict per epoch of the run, oldest first; epoch -1 is the evaluation before any training.

    The columns of sql/analysis/epoch_report.sql, and from the manifests: `versions` (policy → the version that the epoch
    trained), `seconds` (stage → seconds; `evaluate` is the evaluation after the epoch).
    """
    lake = Lake(settings.home)
    epochs = lake.manifests.epochs(settings.run)
    paths: dict[str, list[str]] = {}
    for manifest in epochs:
        for name, table in manifest.tables.items():
            paths.setdefault(name, []).append(str(lake.path(table)))
    if "rollout_rewards" not in paths:
        return []
    with duckdb.connect() as con:
        for name in ("rollout_rewards", "policy_calls", "sequences"):
            if name in paths:
                con.read_parquet(paths[name], union_by_name=True).create_view(name)
            else:
                con.execute(f"CREATE VIEW {name} AS SELECT {EMPTY[name]} WHERE false")
        sql.create_macro(con, "analysis/epoch_report")
        relation = con.sql("FROM epoch_report()")
        rows = [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
    for row in rows:
        row["versions"], row["seconds"] = {}, {}
        for manifest in epochs:
            if manifest.mode == "train" and manifest.epoch == row["epoch"]:
                row["seconds"] |= {name: stage.seconds for name, stage in manifest.stages.items()}
                for name, stage in manifest.stages.items():
                    if name.startswith("train "):
                        row["versions"][name.removeprefix("train ")] = stage.output["version"]
            elif manifest.mode == "evaluate" and manifest.epoch == row["epoch"] + 1:
                row["seconds"]["evaluate"] = round(sum(s.seconds for s in manifest.stages.values()), 3)
                row["versions"] = row["versions"] or manifest.versions
    return rows


def policy_rows(settings: Settings, epoch: int | None = None) -> list[dict[str, Any]]:
    """One dict per epoch (or of one epoch) and policy of the run: rows of sql/views/policy_epochs.sql."""
    lake = Lake(settings.home)
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        relation = con.sql(
            "FROM policy_epochs WHERE run = $run AND epoch = coalesce($epoch, epoch) ORDER BY epoch, policy",
            params={"run": settings.run, "epoch": epoch},
        )
        return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
