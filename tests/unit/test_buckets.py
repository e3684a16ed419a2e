"""How an epoch is cut into buckets, and how they are worked on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from lightning_core.epoch import buckets
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from tests import lake_maker
from tests.unit.test_rewards import two_agents

pytestmark = pytest.mark.slow  # many lakes


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 2}) as con:
        con.execute("CREATE TABLE spans (rollout_id VARCHAR)")
        yield con


def attempts(con: duckdb.DuckDBPyConnection, count: int, weight: int) -> None:
    con.execute(
        "CREATE TABLE counted_attempts AS SELECT i + 1 AS attempt, printf('r%07d', i) AS rollout_id, 'a' AS attempt_id, "
        "i * $weight AS first_node, $weight AS weight FROM range($count) AS numbers (i)",
        {"count": count, "weight": weight},
    )


@pytest.mark.parametrize(("spans", "parts"), [(0, 1), (100_000, 1), (500_000, 2), (1_000_000, 2)])
def test_there_are_as_many_buckets_as_cores_where_there_is_work_for_them(
    con: duckdb.DuckDBPyConnection, spans: int, parts: int
) -> None:
    attempts(con, spans // 100, 100)
    assert len(buckets.cut(con, memory_gb=4)) == parts


def test_what_is_in_memory_at_a_time_fits_into_it_however_large_the_epoch(con: duckdb.DuckDBPyConnection) -> None:
    attempts(con, 200_000, 100)
    cut = buckets.cut(con, memory_gb=4)
    largest = max(bucket.last - bucket.first + 1 for bucket in cut) * 100
    assert len(cut) % 2 == 0 and 3 * largest * 1000 <= 4e9
    assert [bucket.first for bucket in cut[1:]] == [bucket.last + 1 for bucket in cut[:-1]]
    assert (cut[0].first, cut[-1].last) == (1, 200_000)


@pytest.mark.parametrize("spans_a_bucket", [1, 3, 1000])
def test_each_attempt_is_worked_on_once_in_each_pass(con: duckdb.DuckDBPyConnection, spans_a_bucket: int) -> None:
    attempts(con, 7, 1)
    cut = buckets.cut(con, 4, spans_a_bucket)
    for _ in range(2):
        seen = []
        for _, own in buckets.worked(con, cut, lambda own, bucket: None):
            seen += [attempt for (attempt,) in own.execute("SELECT attempt FROM bucket ORDER BY attempt").fetchall()]
        assert seen == list(range(1, 8))


def test_an_error_in_a_bucket_ends_all(con: duckdb.DuckDBPyConnection) -> None:
    attempts(con, 6, 1)

    def work(own: duckdb.DuckDBPyConnection, bucket: buckets.Bucket) -> None:
        if bucket.number == 2:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        for _ in buckets.worked(con, buckets.cut(con, 4, 1), work):
            pass


@pytest.mark.parametrize("mode", ["train", "evaluate"])
@pytest.mark.parametrize("spans_a_bucket", [1_000_000, 7])
def test_progress_is_told_as_often_as_it_says(tmp_path: Path, mode: str, spans_a_bucket: int) -> None:
    rows = [row | {"mode": mode} for number in range(3) for row in two_agents(number)[0].rows]
    _, epoch = lake_maker.derived(tmp_path, rows, mode)
    steps: list[tuple[str, int]] = []
    settings = lake_maker.settings(tmp_path)
    derive(Epoch(settings, epoch), "again", lambda *step: steps.append(step), spans_a_bucket)
    assert len(steps) > 1 and {of for _, of in steps} == {len(steps)}
    assert ("bucket" in steps[0][0]) == (spans_a_bucket == 7)
