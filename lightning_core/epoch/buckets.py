"""An epoch in buckets of whole rollouts: memory does not grow with it, and as many are worked on at a time as there are cores.

What a bucket makes lies in a schema of its own, before the epoch's tables on the search path: SQL names tables plainly and
sees its bucket's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import duckdb
import pyarrow as pa

_BYTES_A_SPAN = 1500  # of what weighs as one: what a bucket works with, and some to spare
SPANS_WORTH_A_BUCKET = 200_000  # of fewer, what its statements cost at any size is more than a core more gains
_AT_A_TIME = 8  # more would share the memory that one of them needs

Work = Callable[[duckdb.DuckDBPyConnection, "Bucket"], None]


@dataclass(frozen=True)
class Bucket:
    """A range of `counted_attempts.attempt`, and of rollout ids (in the order of the table)."""

    number: int
    of: int
    first: int
    last: int

    @property
    def schema(self) -> str:
        return f"bucket_{self.number}"


@dataclass(frozen=True)
class Job:
    """The work of a bucket for another process."""

    bucket: Bucket
    work: Work
    given: dict[str, pa.Table]  # of the epoch, by name: what its inputs do not hold
    wanted: dict[str, str]  # name → query


RunBuckets = Callable[[Iterator[Job]], Iterator[dict[str, pa.Table]]]


@dataclass(frozen=True)
class Spread:
    """How buckets are worked on elsewhere. `run` gives what the jobs made, in their order."""

    run: RunBuckets
    known: set[str]  # tables that are there too
    wanted: dict[str, str]


def whole(con: duckdb.DuckDBPyConnection) -> Bucket:
    """Return all attempts of the epoch as one bucket."""
    (last,) = con.execute("SELECT coalesce(max(attempt), 0) FROM counted_attempts").fetchall()[0]
    return Bucket(1, 1, 1, last)


def cut(con: duckdb.DuckDBPyConnection, memory_gb: float, spans_a_bucket: int | None = None) -> list[Bucket]:
    """Cut the epoch's attempts into buckets of so many spans at most (more where one attempt has more).

    By default of as many as fit if all that are in memory at a time, one a core and the one being read, share `memory_gb`.
    At least one, even if empty; where several, as many as keep every core busy to the end.
    """
    spans = con.execute("SELECT coalesce(sum(weight), 0)::BIGINT FROM counted_attempts").fetchall()[0][0]
    cores = _at_a_time(con)
    if spans_a_bucket is None:
        spans_a_bucket = int(memory_gb * 1e9) // ((cores + 1) * _BYTES_A_SPAN)
    parts = max(-(-spans // spans_a_bucket), min(cores, spans // SPANS_WORTH_A_BUCKET))
    if parts > 1:
        parts += -parts % cores
    rows = con.execute(
        """
        WITH placed AS (
            SELECT attempt, ((sum(weight) OVER (ORDER BY attempt) - weight) * ? // greatest(?, 1)) AS bucket
            FROM counted_attempts
        )
        SELECT min(attempt), max(attempt) FROM placed GROUP BY bucket ORDER BY bucket
        """,
        [parts, spans],
    ).fetchall() or [(1, 0)]
    return [Bucket(number, len(rows), first, last) for number, (first, last) in enumerate(rows, 1)]


def enter(con: duckdb.DuckDBPyConnection, bucket: Bucket) -> None:
    """Begin a bucket, unless `con` is in it: its schema holds its attempts, and `spans` is those of its rollouts."""
    schema = bucket.schema
    if con.execute("SELECT current_schema()").fetchall()[0][0] == schema:
        return
    con.execute(f"CREATE SCHEMA {schema}; SET search_path = '{schema},main'")
    con.execute(
        f"CREATE TABLE {schema}.bucket AS SELECT attempt, rollout_id, attempt_id, first_node FROM main.counted_attempts "
        "WHERE attempt BETWEEN ? AND ?",
        [bucket.first, bucket.last],
    )
    if bucket.of > 1:
        # As literals, so that the scan skips row groups of other rollouts.
        low, high = con.execute(f"SELECT min(rollout_id), max(rollout_id) FROM {schema}.bucket").fetchall()[0]
        con.execute(
            f"CREATE VIEW {schema}.spans AS FROM main.spans WHERE rollout_id BETWEEN {_text(low)} AND {_text(high)}"
        )


def worked(
    con: duckdb.DuckDBPyConnection, buckets: list[Bucket], work: Work, spread: Spread | None = None
) -> Iterator[tuple[Bucket, duckdb.DuckDBPyConnection]]:
    """Yield the buckets in order, each when `work` is done in it, with the connection that is in it.

    One bucket alone is worked on by `con` itself, which stays in it. Of several, each has a connection and a thread of its
    own, which no others help (a core a bucket loses less than a query on all cores), and is dropped when the next is
    asked for. An error of one ends all. spread: several are worked on elsewhere, and have only what is asked for of it.
    """
    if len(buckets) == 1:
        _work_in(con, buckets[0], work)
        yield buckets[0], con
        return
    if spread is not None:
        yield from _worked_elsewhere(con, buckets, work, spread)
        return
    at_a_time = _at_a_time(con)
    con.execute("SET threads = 1")
    ahead: deque[tuple[Bucket, duckdb.DuckDBPyConnection, Future[None]]] = deque()
    try:
        with ThreadPoolExecutor(at_a_time) as pool:
            try:
                for bucket in buckets:
                    own = con.cursor()
                    ahead.append((bucket, own, pool.submit(_work_in, own, bucket, work)))
                    if len(ahead) > at_a_time:
                        yield from _taken(*ahead.popleft())
                while ahead:
                    yield from _taken(*ahead.popleft())
            finally:
                for _, own, waiting in ahead:
                    waiting.cancel()
                    own.interrupt()
    finally:
        con.execute("RESET threads")


def tables(con: duckdb.DuckDBPyConnection) -> set[str]:
    """Return the names of the epoch's tables so far."""
    found = con.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'").fetchall()
    return {name for (name,) in found}


def share(con: duckdb.DuckDBPyConnection, name: str, attempts: str) -> str:
    """Return SQL for the rows of a table of the epoch that are of some attempts; for all, where rows are of none."""
    columns = set(con.sql(f"FROM main.{name}").columns)
    for keys in ({"rollout_id", "attempt_id"}, {"attempt"}):
        if keys <= columns:
            return f"FROM main.{name} SEMI JOIN {attempts} AS asked USING ({', '.join(sorted(keys))})"
    return f"FROM main.{name}"


def work_alone(con: duckdb.DuckDBPyConnection, job: Job) -> dict[str, pa.Table]:
    """Do the work of one bucket elsewhere, in a connection that has what is known of the epoch; return the tables that
    are asked for."""
    con.execute("SET threads = 1")
    for name, table in job.given.items():
        _create(con, f"main.{name}", table)
    _work_in(con, job.bucket, job.work)
    return {name: con.sql(query).to_arrow_table() for name, query in job.wanted.items()}


def _worked_elsewhere(
    con: duckdb.DuckDBPyConnection, buckets: list[Bucket], work: Work, spread: Spread
) -> Iterator[tuple[Bucket, duckdb.DuckDBPyConnection]]:
    more = sorted(tables(con) - spread.known)
    jobs = (Job(bucket, work, {name: _share(con, name, bucket) for name in more}, spread.wanted) for bucket in buckets)
    for bucket, made in zip(buckets, spread.run(jobs), strict=True):
        own = con.cursor()
        own.execute(f"CREATE SCHEMA {bucket.schema}; SET search_path = '{bucket.schema},main'")
        for name, table in made.items():
            _create(own, f"{bucket.schema}.{name}", table)
        yield bucket, own
        _drop(bucket, own)


def _share(con: duckdb.DuckDBPyConnection, name: str, bucket: Bucket) -> pa.Table:
    attempts = f"(FROM main.counted_attempts WHERE attempt BETWEEN {bucket.first} AND {bucket.last})"
    return con.sql(share(con, name, attempts)).to_arrow_table()


def _create(con: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    con.register("arrived", table)
    con.execute(f"CREATE OR REPLACE TABLE {name} AS FROM arrived")
    con.unregister("arrived")


def _drop(bucket: Bucket, own: duckdb.DuckDBPyConnection) -> None:
    own.execute(f"SET search_path = 'main'; DROP SCHEMA {bucket.schema} CASCADE")
    own.close()


def _work_in(own: duckdb.DuckDBPyConnection, bucket: Bucket, work: Work) -> None:
    enter(own, bucket)
    work(own, bucket)


def _taken(
    bucket: Bucket, own: duckdb.DuckDBPyConnection, waiting: Future[None]
) -> Iterator[tuple[Bucket, duckdb.DuckDBPyConnection]]:
    waiting.result()
    yield bucket, own
    _drop(bucket, own)


def _at_a_time(con: duckdb.DuckDBPyConnection) -> int:
    cores = con.execute("SELECT current_setting('threads')").fetchall()[0][0]
    return min(int(cores), _AT_A_TIME)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
