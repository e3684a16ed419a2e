"""Runs the SQL from spans to training sequences for one epoch, every step a table.

An epoch is worked through in buckets of whole rollouts, so that memory does not grow with it. Three passes: each bucket
up to its triplets; then advantages, over the rollouts of all buckets; then each bucket's sequences. What a bucket makes
lies in the schema `bucket`, before the epoch's tables on the search path: SQL names tables plainly and sees its bucket's.
Spans are numbered on from bucket to bucket, and the tables written are the same however many buckets there were.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa

from lightning_core.config import AgentRule, Settings
from lightning_core.lake import sql
from lightning_core.lake.derive_inputs import (
    GATHERED,
    KEPT_ADVANTAGES,
    KEPT_REWARDS,
    KEPT_SEQUENCES,
    KEPT_TRIPLETS,
    REWARDS,
    SEQUENCES,
    TOKENS,
    TRIPLETS,
    make_advantages,
    make_checks,
    make_inputs,
    sql_files,
)
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.lake.retain import require_spans

logger = logging.getLogger(__name__)

# Of an epoch, before it is cut into buckets; and of a bucket.
EPOCH = ("hierarchy/scored_attempts", "hierarchy/counted_attempts", "hierarchy/methods", "ingest/attribute_aliases")
SPANS = ("hierarchy/node_keys", "hierarchy/epoch_spans")
HIERARCHY = (
    "hierarchy/nodes",
    "hierarchy/user_names",
    "hierarchy/rule_matches",
    "hierarchy/looked_for",
    "hierarchy/declared",
    "hierarchy/orphans",
    "hierarchy/llm_content",
    "hierarchy/llm_twins",
    "hierarchy/tool_callers",
    "hierarchy/names",
    "hierarchy/span_links",
    "hierarchy/evidence",
    "hierarchy/missing_parents",
    "hierarchy/edges",
    "hierarchy/reached",
    "hierarchy/broken_cycles",
    "hierarchy/components",
    "hierarchy/agent_spans",
    "hierarchy/hooks",
    "hierarchy/waiting",
    "hierarchy/agent_windows",
    "hierarchy/held_by",
    "hierarchy/placements",
    "hierarchy/places",
    "hierarchy/span_tree",
)
# These are wide, or parts of tables: they stay views, and a query reads of them what it needs.
_VIEWS = {
    "hierarchy/epoch_spans",
    "hierarchy/span_tree",
    "hierarchy/declared",
    "hierarchy/components",
    "triplets/triplets",
}
SPANS_A_BUCKET = 2_000_000
MEMORY_GB = 4.0
_LEAVE = "DROP SCHEMA IF EXISTS bucket CASCADE; SET search_path = 'main'"
_ENTER = "DROP SCHEMA IF EXISTS bucket CASCADE; CREATE SCHEMA bucket; SET search_path = 'bucket,main'"

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Bucket:
    """A range of `counted_attempts.attempt`, and of rollout ids (in the order of the table)."""

    number: int
    of: int
    first: int
    last: int


def sql_digest(settings: Settings) -> str:
    """Digest of every SQL file that `derive` runs with these settings."""
    return sql.digest(*EPOCH, *SPANS, *HIERARCHY, *sql_files(settings))


@cache
def derive_code() -> str:
    """Digest of what runs the SQL: derived by other code, an epoch is derived again."""
    files = [Path(__file__).with_name(name) for name in ("derive.py", "derive_inputs.py", "patterns.py")]
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()[:16]


@contextlib.contextmanager
def attempts(lake: Lake, epoch: EpochManifest) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with `scored_attempts` and `epoch_spans` of the epoch's spans: what a grader works on."""
    with opened(lake, epoch) as con:
        for bucket in buckets(con, None):
            enter(con, bucket)
            run(con, SPANS)
        yield con


def derive(
    lake: Lake,
    epoch: EpochManifest,
    settings: Settings,
    key: str,
    on_progress: OnProgress | None = None,
    spans_a_bucket: int = SPANS_A_BUCKET,
) -> dict[str, int]:
    """Build the derived tables of an epoch from its spans; returns rows by table. The caller saves the manifest.

    An evaluation stops at the rewards: nothing is trained on it.
    """
    train = epoch.mode == "train"
    with opened(lake, epoch) as con:
        make_inputs(con, settings, epoch)
        make_user_rules(con, settings.agent_rules)
        parts = buckets(con, spans_a_bucket)
        narrow = KEPT_REWARDS + (KEPT_TRIPLETS if train else ())
        gathered = GATHERED if train else ()

        def trees() -> Iterator[pa.RecordBatchReader]:
            for bucket in parts:
                enter(con, bucket)
                run(con, (*SPANS, *HIERARCHY, *REWARDS, *(TRIPLETS if train else ())), _told(on_progress, bucket))
                yield con.sql("FROM span_tree ORDER BY abs(node), node").to_arrow_reader()
                _gather(con, (*narrow, *gathered, "rule_matches"), len(parts))

        def sequences() -> Iterator[pa.RecordBatchReader]:
            for bucket in parts:
                if len(parts) > 1:
                    _return_to(con, bucket, (*narrow, *gathered))
                run(con, SEQUENCES, _told(on_progress, bucket))
                yield con.sql("FROM sequences").to_arrow_reader()
                _gather(con, [n for n in KEPT_SEQUENCES if n != "sequences"], len(parts))

        _put(lake, epoch, "span_tree", trees(), key)
        if len(parts) > 1:
            con.execute(_LEAVE)
        kept: list[str] = ["scored_attempts", *narrow, *make_checks(con, train)]
        if train:
            make_advantages(con, settings)
            _put(lake, epoch, "sequences", sequences(), key)
            if len(parts) > 1:
                con.execute(_LEAVE)
            kept += [*KEPT_ADVANTAGES, *(n for n in KEPT_SEQUENCES if n != "sequences")]
        for name in kept:
            lake.put_table(epoch, name, con.sql(f"FROM {name}").to_arrow_reader(), key)
    return {name: table.rows for name, table in epoch.tables.items()}


@contextlib.contextmanager
def opened(lake: Lake, epoch: EpochManifest) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with what is known of the whole epoch: its scope, its attempts, the rules.

    Raises LakeError where retention took spans of the epoch.
    """
    require_spans(lake, epoch)
    with lake.connect(epoch.span_range, MEMORY_GB) as con:
        con.execute(
            "CREATE TABLE epoch_scope AS SELECT ?::VARCHAR AS run, ?::BIGINT AS epoch, ?::VARCHAR AS mode",
            [epoch.run, epoch.epoch, epoch.mode],
        )
        con.register("planned", pa.table({"rollout_id": pa.array(epoch.planned, pa.string())}))
        con.execute("CREATE TABLE numbering AS SELECT 0::BIGINT AS first_node")
        run(con, EPOCH)
        yield con


def make_user_rules(con: duckdb.DuckDBPyConnection, rules: list[AgentRule]) -> None:
    """Create `user_rules`: the settings' `agent_rules`, in their order."""
    con.execute(
        "CREATE TABLE main.user_rules (rank INTEGER, source VARCHAR, key VARCHAR, pattern VARCHAR, span_name VARCHAR)"
    )
    for rank, rule in enumerate(rules):
        con.execute(
            "INSERT INTO user_rules VALUES (?, ?, ?, ?, ?)",
            [rank, rule.source, rule.key, rule.pattern, rule.when or ""],
        )


def buckets(con: duckdb.DuckDBPyConnection, spans_a_bucket: int | None) -> list[Bucket]:
    """Cut the epoch's attempts into buckets of about so many spans; None: one bucket. At least one, even if empty."""
    rows = con.execute(
        """
        WITH placed AS (
            SELECT attempt, (sum(spans) OVER (ORDER BY attempt) - spans) // coalesce(?::BIGINT, 9223372036854775807) AS bucket
            FROM counted_attempts
        )
        SELECT min(attempt), max(attempt) FROM placed GROUP BY bucket ORDER BY bucket
        """,
        [spans_a_bucket],
    ).fetchall() or [(1, 0)]
    return [Bucket(number, len(rows), first, last) for number, (first, last) in enumerate(rows, 1)]


def enter(con: duckdb.DuckDBPyConnection, bucket: Bucket) -> None:
    """Begin a bucket: its schema holds its attempts, and `spans` is those of its rollouts."""
    con.execute(_ENTER)
    con.execute(
        "CREATE TABLE bucket.bucket AS SELECT attempt, rollout_id, attempt_id FROM main.counted_attempts "
        "WHERE attempt BETWEEN ? AND ?",
        [bucket.first, bucket.last],
    )
    if bucket.of > 1:
        # As literals, so that the scan skips row groups of other rollouts.
        low, high = con.execute("SELECT min(rollout_id), max(rollout_id) FROM bucket.bucket").fetchall()[0]
        con.execute(
            f"CREATE VIEW bucket.spans AS FROM main.spans WHERE rollout_id BETWEEN {_text(low)} AND {_text(high)}"
        )


def run(con: duckdb.DuckDBPyConnection, files: tuple[str, ...], on_progress: OnProgress | None = None) -> None:
    """Create the table (or view) of each SQL file, in order."""
    for name in files:
        if on_progress is not None:
            on_progress(name)
        kind = "VIEW" if name in _VIEWS else "TABLE"
        con.execute(f"CREATE {kind} {name.rsplit('/', 1)[-1]} AS {sql.text(name)}")


def _gather(con: duckdb.DuckDBPyConnection, names: tuple[str, ...] | list[str], parts: int) -> None:
    """Append a bucket's narrow tables to the epoch's, and number on. One bucket's are the epoch's as they are."""
    if parts == 1:
        return
    for name in names:
        con.execute(f"CREATE TABLE IF NOT EXISTS main.{name} AS FROM bucket.{name} LIMIT 0")
        con.execute(f"INSERT INTO main.{name} FROM bucket.{name}")
    known = con.execute(
        "SELECT count(*) FROM duckdb_tables() WHERE schema_name = 'bucket' AND table_name = 'node_keys'"
    )
    if known.fetchall()[0][0]:
        con.execute("UPDATE numbering SET first_node = (SELECT coalesce(max(node), first_node) FROM bucket.node_keys)")


def _return_to(con: duckdb.DuckDBPyConnection, bucket: Bucket, narrow: tuple[str, ...]) -> None:
    """A bucket again, after the epoch's advantages: its share of the narrow tables, and its triplets."""
    enter(con, bucket)
    for name in narrow:
        con.execute(
            f"CREATE VIEW bucket.{name} AS FROM main.{name} SEMI JOIN bucket.bucket USING (rollout_id, attempt_id)"
        )
    run(con, TOKENS)


def _put(lake: Lake, epoch: EpochManifest, name: str, readers: Iterator[pa.RecordBatchReader], key: str) -> None:
    """Write a wide table bucket by bucket, as its readers come."""
    first = next(readers)

    def batches() -> Iterator[pa.RecordBatch]:
        yield from first
        for reader in readers:
            yield from reader

    lake.put_table(epoch, name, pa.RecordBatchReader.from_batches(first.schema, batches()), key)


def _told(on_progress: OnProgress | None, bucket: Bucket) -> OnProgress | None:
    if on_progress is None or bucket.of == 1:
        return on_progress
    return lambda name: on_progress(f"{name}, bucket {bucket.number} of {bucket.of}")


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
