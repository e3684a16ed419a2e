"""Runs the SQL from spans to training sequences for one epoch, every step a table."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import duckdb
import pyarrow as pa

from lightning_core.config import Settings
from lightning_core.lake import sql
from lightning_core.lake.derive_inputs import (
    KEPT_ADVANTAGES,
    KEPT_REWARDS,
    KEPT_SEQUENCES,
    KEPT_TRIPLETS,
    REWARDS,
    SEQUENCES,
    TRIPLETS,
    make_advantages,
    make_inputs,
    sql_files,
)
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest

logger = logging.getLogger(__name__)

_ATTEMPTS = ("hierarchy/scored_attempts", "hierarchy/epoch_spans")
_HIERARCHY = ("hierarchy/llm_twins", "hierarchy/parents", "hierarchy/span_tree")
_KEPT = ("scored_attempts", "span_tree", *KEPT_REWARDS)
_KEPT_OF_TRAINING = (*KEPT_TRIPLETS, *KEPT_ADVANTAGES, *KEPT_SEQUENCES)


def sql_digest(settings: Settings) -> str:
    """Digest of every SQL file that `derive` runs with these settings."""
    return sql.digest(*_ATTEMPTS, *_HIERARCHY, *sql_files(settings))


@contextlib.contextmanager
def attempts(lake: Lake, epoch: EpochManifest) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with `scored_attempts` and `epoch_spans` of the epoch's spans: what a grader works on."""
    with lake.connect(epoch.span_range) as con:
        con.execute(
            "CREATE TABLE epoch_scope AS SELECT ?::VARCHAR AS run, ?::BIGINT AS epoch, ?::VARCHAR AS mode",
            [epoch.run, epoch.epoch, epoch.mode],
        )
        con.register("planned", pa.table({"rollout_id": pa.array(epoch.planned, pa.string())}))
        for name in _ATTEMPTS:
            _create(con, name)
        yield con


def derive(
    lake: Lake, epoch: EpochManifest, settings: Settings, key: str, on_progress: Callable[[str], None] | None = None
) -> dict[str, int]:
    """Build the derived tables of an epoch from its spans; returns rows by table. The caller saves the manifest.

    An evaluation stops at the rewards: nothing is trained on it.
    """
    with attempts(lake, epoch) as con:
        make_inputs(con, settings, epoch)
        for name in (*_HIERARCHY, *REWARDS):
            _create(con, name, on_progress)
        kept: tuple[str, ...] = _KEPT
        if epoch.mode == "train":
            for name in TRIPLETS:
                _create(con, name, on_progress)
            make_advantages(con, settings)
            for name in SEQUENCES:
                _create(con, name, on_progress)
            kept += _KEPT_OF_TRAINING
        for table in kept:
            lake.put_table(epoch, table, con.sql(f"FROM {table}").to_arrow_table(), key)
    return {name: table.rows for name, table in epoch.tables.items()}


def _create(con: duckdb.DuckDBPyConnection, name: str, on_progress: Callable[[str], None] | None = None) -> None:
    if on_progress is not None:
        on_progress(name)
    con.execute(f"CREATE TABLE {name.rsplit('/', 1)[-1]} AS {sql.text(name)}")
