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

SPANS_A_BUCKET = 600_000  # some 0.6 GB; what its statements cost at any size is then a twentieth
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


def cut(con: duckdb.DuckDBPyConnection, spans_a_bucket: int | None) -> list[Bucket]:
    """Cut the epoch's attempts into buckets of so many spans at most (more where one attempt has more); None: one bucket.

    At least one, even if empty; where several, as many as keep every core busy to the end.
    """
    whole = con.execute("SELECT coalesce(sum(weight), 0)::BIGINT FROM counted_attempts").fetchall()[0][0]
    parts = 1 if spans_a_bucket is None else -(-whole // spans_a_bucket)
    if parts > 1:
        parts += -parts % _cores(con)
    rows = con.execute(
        """
        WITH placed AS (
            SELECT attempt, ((sum(weight) OVER (ORDER BY attempt) - weight) * ? // greatest(?, 1)) AS bucket
            FROM counted_attempts
        )
        SELECT min(attempt), max(attempt) FROM placed GROUP BY bucket ORDER BY bucket
        """,
        [parts, whole],
    ).fetchall() or [(1, 0)]
    return [Bucket(number, len(rows), first, last) for number, (first, last) in enumerate(rows, 1)]


def enter(con: duckdb.DuckDBPyConnection, bucket: Bucket) -> None:
    """Begin a bucket: its schema holds its attempts, and `spans` is those of its rollouts."""
    schema = bucket.schema
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
    con: duckdb.DuckDBPyConnection, buckets: list[Bucket], work: Work
) -> Iterator[tuple[Bucket, duckdb.DuckDBPyConnection]]:
    """The buckets in order, each when `work` is done in it, with the connection that is in it.

    One bucket alone is worked on by `con` itself, which has entered it. Of several, each has a connection and a thread of its
    own, which no others help (a core a bucket loses less than a query on all cores), and is dropped when the next is
    asked for. An error of one ends all.
    """
    if len(buckets) == 1:
        work(con, buckets[0])
        yield buckets[0], con
        return
    at_a_time = min(_cores(con), _AT_A_TIME)
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


def _work_in(own: duckdb.DuckDBPyConnection, bucket: Bucket, work: Work) -> None:
    enter(own, bucket)
    work(own, bucket)


def _taken(
    bucket: Bucket, own: duckdb.DuckDBPyConnection, waiting: Future[None]
) -> Iterator[tuple[Bucket, duckdb.DuckDBPyConnection]]:
    waiting.result()
    yield bucket, own
    own.execute(f"SET search_path = 'main'; DROP SCHEMA {bucket.schema} CASCADE")
    own.close()


def _cores(con: duckdb.DuckDBPyConnection) -> int:
    return int(con.execute("SELECT current_setting('threads')").fetchall()[0][0])


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
