"""Single SQL files run over tables made by hand: for tests of one rule, without spans or a lake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from lightning_core.epoch.derive_inputs import make_inputs
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake import sql
from lightning_core.lake.manifest import EpochManifest
from tests.lake_maker import settings

RETURNS = (
    "call_id BIGINT, policy VARCHAR, group_id VARCHAR, rollout_id VARCHAR, attempt_id VARCHAR, agent VARCHAR, "
    "step BIGINT, reward DOUBLE, return DOUBLE, left_out VARCHAR"
)
TRIPLETS = (
    "call_id BIGINT, choice BIGINT, rollout_id VARCHAR, attempt_id VARCHAR, group_id VARCHAR, policy VARCHAR, "
    "policy_version VARCHAR, agent VARCHAR, prompt_tokens INTEGER, response_tokens INTEGER, prompt_ids INTEGER[], response_ids INTEGER[], response_logprobs FLOAT[], tokenized BOOLEAN, "
    "reward DOUBLE"
)
ROWS = "call_id BIGINT, rollout_id VARCHAR, attempt_id VARCHAR, record_offset BIGINT, record_index INTEGER"
SPANS = (
    "record_offset BIGINT, record_index INTEGER, prompt_ids INTEGER[], input_messages VARCHAR, output_messages VARCHAR"
)


def connection(home: Path, **changes: Any) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the tables that settings give."""
    con = duckdb.connect(config={"threads": 1})
    sql.create_shared(con)
    make_inputs(con, Epoch(settings(home, **changes), EpochManifest(run="run", epoch=0, opened_offset=0)))
    return con


def put(con: duckdb.DuckDBPyConnection, name: str, columns: str, rows: list[dict[str, Any]]) -> None:
    """Create a table; what a row does not give is NULL."""
    names = [column.split(" ")[0] for column in columns.split(", ")]
    con.execute(f"CREATE TABLE {name} ({columns})")
    if rows:
        marks = ", ".join("?" for _ in names)
        con.executemany(f"INSERT INTO {name} VALUES ({marks})", [[row.get(n) for n in names] for row in rows])


def run(con: duckdb.DuckDBPyConnection, *files: str) -> None:
    for name in files:
        sql.create(con, name)


def rows(con: duckdb.DuckDBPyConnection, question: str) -> list[dict[str, Any]]:
    relation = con.sql(question)
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
