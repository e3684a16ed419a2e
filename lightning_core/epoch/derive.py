"""Runs the SQL from spans to training sequences for one epoch, every step a table.

Three passes over buckets of whole rollouts: each bucket up to its triplets; then advantages, over the rollouts of all
buckets; then each bucket's sequences. The tables written are the same however many buckets there were.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa

from lightning_core.config import AgentRule, PolicySettings
from lightning_core.epoch import buckets
from lightning_core.epoch.buckets import Bucket
from lightning_core.epoch.derive_inputs import (
    CHECKS,
    CHECKS_OF_TRAINING,
    GATHERED,
    GIVEN,
    KEPT_ADVANTAGES,
    KEPT_REWARDS,
    KEPT_TRIPLETS,
    make_advantages,
    make_inputs,
    sql_files,
)
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.tokenize import make_tokenized
from lightning_core.lake import sql
from lightning_core.lake.manifest import EpochManifest
from lightning_core.lake.retain import require_spans
from lightning_core.lake.unique_places import require_unique
from lightning_core.lake.verify import require_sound

# Made of an epoch before it is cut into buckets, with what they are made of: scored_attempts.
_OF_THE_EPOCH = ("counted_attempts", "methods", "attribute_aliases")
KNOWN = GIVEN | {"scored_attempts", *_OF_THE_EPOCH}
# These are wide, or parts of tables: they stay views, and a query reads of them what it needs.
_VIEWS = {
    "hierarchy/epoch_spans",
    "hierarchy/span_agents",
    "hierarchy/places",
    "hierarchy/span_tree",
    "hierarchy/declared",
    "hierarchy/components",
    "triplets/triplets",
}
_ORDERED = {"span_tree": "FROM span_tree ORDER BY abs(node), node"}
MEMORY_GB = 4.0
OnProgress = Callable[[str, int], None]  # what comes next, and how many such there are


def sql_digest(policies: list[PolicySettings]) -> str:
    """Return a digest of every SQL file that `derive` runs for these policies."""
    return sql.digest(*sql_files(policies))


@cache
def derive_code() -> str:
    """Return a digest of the code that runs the SQL: an epoch that other code derived is derived again."""
    files = [
        Path(__file__).with_name(name)
        for name in ("derive.py", "derive_inputs.py", "buckets.py", "patterns.py", "tokenize.py")
    ]
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()[:16]


@contextlib.contextmanager
def attempts(epoch: Epoch) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a connection with `scored_attempts` and `epoch_spans` of the epoch's spans: what a grader works on."""
    with opened(epoch) as con:
        buckets.enter(con, buckets.whole(con))
        run(con, sql.steps("epoch_spans", there=KNOWN))
        yield con


def derive(
    epoch: Epoch,
    key: str,
    on_progress: OnProgress | None = None,
    spans_a_bucket: int | None = None,
    elsewhere: buckets.RunBuckets | None = None,
) -> dict[str, int]:
    """Build the derived tables of an epoch from its spans; returns rows by table. The caller saves the manifest.

    spans_a_bucket: at most; by default as many as memory allows. elsewhere: has several buckets worked on in other
    processes, by `work_bucket`. An evaluation stops at the rewards: nothing is trained on
    it. Raises LakeError for a lake with two spans in one place.
    """
    train = epoch.mode == "train"
    with opened(epoch) as con:
        _make_known(con, epoch)
        known = buckets.tables(con) - {"tokenized_calls"}
        if train:
            make_tokenized(con, epoch)
        parts = buckets.cut(con, MEMORY_GB, spans_a_bucket)
        narrow = KEPT_REWARDS + (KEPT_TRIPLETS if train else ())
        gathered = narrow + (GATHERED if train else ())
        first = (*gathered, "rule_matches")
        until_nodes = sql.steps("epoch_spans", "nodes", there=KNOWN)
        from_nodes = sql.steps("span_tree", *first, there=KNOWN | _tables(until_nodes))
        still_there = _tables(until_nodes) | _tables(from_nodes) if len(parts) == 1 else {*first}
        to_the_end = (
            sql.steps("sequences", "call_exclusions", there=KNOWN | still_there | {"advantages"}) if train else ()
        )
        steps = len(parts) * (2 if train else 1)
        if len(parts) == 1:
            steps = len(until_nodes) + len(from_nodes) + len(to_the_end)

        def tell(what: str) -> None:
            if on_progress is not None:
                on_progress(what, steps)

        # Reported from here, of several buckets as each is done: `on_progress` need not be safe from threads.
        on_step = tell if len(parts) == 1 else None

        def spread(*names: str) -> buckets.Spread | None:
            wanted = {name: _ORDERED.get(name, f"FROM {name}") for name in names}
            return None if elsewhere is None else buckets.Spread(elsewhere, known, wanted)

        def to_triplets(own: duckdb.DuckDBPyConnection, bucket: Bucket) -> None:
            run(own, until_nodes, on_step)
            require_unique(own, epoch.lake, epoch.manifest)
            run(own, from_nodes, on_step)

        def to_sequences(own: duckdb.DuckDBPyConnection, bucket: Bucket) -> None:
            if bucket.of > 1:
                _return_to(own, bucket, gathered)
            run(own, to_the_end, on_step)

        def trees() -> Generator[pa.RecordBatchReader]:
            for bucket, own in buckets.worked(con, parts, to_triplets, spread("span_tree", *first)):
                _say(tell, "triplets", bucket)
                yield own.sql(_ORDERED["span_tree"]).to_arrow_reader()
                _gather(con, bucket, first)

        def sequences() -> Generator[pa.RecordBatchReader]:
            for bucket, own in buckets.worked(con, parts, to_sequences, spread("sequences", "call_exclusions")):
                _say(tell, "sequences", bucket)
                yield own.sql("FROM sequences").to_arrow_reader()
                _gather(con, bucket, ["call_exclusions"])

        _put(epoch, "span_tree", trees(), key)
        checks = (*CHECKS, *(CHECKS_OF_TRAINING if train else ()))
        run(con, sql.steps(*checks, there=KNOWN | {*first}))
        kept = ["scored_attempts", *narrow, *checks]
        if train:
            make_advantages(con, epoch.settings.policies)
            before = epoch.manifest.tables.get("sequences")
            _put(epoch, "sequences", sequences(), key)
            if before is None or before.digest != epoch.manifest.tables["sequences"].digest:
                _forget_scores(epoch.manifest)
            run(con, sql.steps("exclusions", there=KNOWN | {"call_exclusions"}))
            kept += KEPT_ADVANTAGES
        for name in kept:
            epoch.lake.put_table(epoch.manifest, name, con.sql(f"FROM {name}").to_arrow_reader(), key)
    return {name: table.rows for name, table in epoch.manifest.tables.items()}


def work_bucket(epoch: Epoch, job: buckets.Job) -> dict[str, pa.Table]:
    """Do the work of one bucket in another process than `derive`'s; return the tables that `derive` asks for.

    On a machine that does not share the home, spans come from `lake.storage`.
    """
    if epoch.settings.lake.storage is not None:
        from lightning_core.lake.storage import bring_spans  # brings fsspec

        bring_spans(epoch.lake, epoch.settings.lake.storage, epoch.manifest.span_range)
    with opened(epoch) as con:
        _make_known(con, epoch)
        return buckets.work_alone(con, job)


def _make_known(con: duckdb.DuckDBPyConnection, epoch: Epoch) -> None:
    """Create the tables of what is read of the settings. With those of `opened` they are all that is known before the
    first bucket."""
    make_inputs(con, epoch)
    make_user_rules(con, epoch.settings.agent_rules)


@contextlib.contextmanager
def opened(epoch: Epoch) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a connection with what is known of the whole epoch: its scope, its attempts, the rules.

    Raises LakeError where retention took spans of the epoch, or a file of them is not what was written; KeyboardInterrupt for Ctrl-C at any moment.
    """
    manifest = epoch.manifest
    require_spans(epoch.lake, manifest)
    require_sound(epoch.lake.root, epoch.lake.files_between(*manifest.span_range))
    with _interruptible(), epoch.lake.connect(manifest.span_range, MEMORY_GB) as con:
        con.execute("CREATE TABLE epoch_scope (run VARCHAR, epoch BIGINT, mode VARCHAR)")
        con.executemany("INSERT INTO epoch_scope VALUES (?, ?, ?)", manifest.scope)
        con.register("planned", pa.table({"rollout_id": pa.array(manifest.planned, pa.string())}))
        run(con, sql.steps(*_OF_THE_EPOCH, there=GIVEN))
        yield con


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt where DuckDB swallows one that comes while it runs a query, and raises its own error."""
    try:
        yield
    except RuntimeError as error:
        if str(error) == "Query interrupted":
            raise KeyboardInterrupt from error
        raise


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


def _forget_scores(manifest: EpochManifest) -> None:
    """Forget what algorithms scored of the tokens: it is of the sequences as they were."""
    for name in [name for name in manifest.tables if name.startswith("token_scores ")]:
        del manifest.tables[name]


def _tables(files: Iterable[str]) -> set[str]:
    return {name.rsplit("/", 1)[-1] for name in files}


def run(con: duckdb.DuckDBPyConnection, files: tuple[str, ...], on_step: Callable[[str], None] | None = None) -> None:
    """Create the table (or view) of each SQL file, in order."""
    for name in files:
        if on_step is not None:
            on_step(name)
        sql.create(con, name, "VIEW" if name in _VIEWS else "TABLE")


def _gather(con: duckdb.DuckDBPyConnection, bucket: Bucket, names: Sequence[str]) -> None:
    """Append a bucket's narrow tables to the epoch's. One bucket's are the epoch's as they are."""
    if bucket.of == 1:
        return
    for name in names:
        con.execute(f"CREATE TABLE IF NOT EXISTS main.{name} AS FROM {bucket.schema}.{name} LIMIT 0")
        con.execute(f"INSERT INTO main.{name} FROM {bucket.schema}.{name}")


def _return_to(con: duckdb.DuckDBPyConnection, bucket: Bucket, narrow: Sequence[str]) -> None:
    """Return to a bucket after the epoch's advantages are made: give it its share of the narrow tables."""
    for name in narrow:
        con.execute(f"CREATE VIEW {bucket.schema}.{name} AS {buckets.share(con, name, 'bucket')}")


def _say(tell: Callable[[str], None], what: str, bucket: Bucket) -> None:
    if bucket.of > 1:
        tell(f"{what}, bucket {bucket.number} of {bucket.of}")


def _put(epoch: Epoch, name: str, readers: Generator[pa.RecordBatchReader], key: str) -> None:
    """Write a wide table bucket by bucket, as its readers come."""
    with contextlib.closing(readers):
        first = next(readers)

        def batches() -> Iterator[pa.RecordBatch]:
            yield from first
            for reader in readers:
                yield from reader

        epoch.lake.put_table(epoch.manifest, name, pa.RecordBatchReader.from_batches(first.schema, batches()), key)


def first_rows(epoch: Epoch, table: str, columns: str) -> str:
    """Return the first five rows of a derived table in words, to show what is wrong."""
    with epoch.lake.engine() as con:
        relation = con.read_parquet(epoch.table(table)).select(columns).limit(5)
        rows = sql.rows(relation)
    return "; ".join(", ".join(f"{k} {v}" for k, v in row.items() if k not in ("run", "epoch")) for row in rows)
