"""SQL that avoids pairs says what the same rule says in pairs (tests/sql/plain), on random agents and calls."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from lightning_core.lake import sql
from tests import sql_rig

PLAIN = Path(__file__).parents[1] / "sql/plain"
STEP = 10_000_000  # ns: a fifth of what clocks may be apart, so that many times are on an edge of it
_NEVER = 2**63 - 1
# Where they differ: the number of candidates of an ambiguous span, and the plain one counts right.
_COUNTED_MORE = """
    SELECT node FROM enclosing_agent FULL JOIN plain USING (node, method)
    WHERE plain.candidates IS NULL OR enclosing_agent.candidates IS NULL OR enclosing_agent.candidates > plain.candidates
"""


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as con:
        sql.create_shared(con)
        yield con


def differences(con: duckdb.DuckDBPyConnection, table: str) -> list[Any]:
    """Rows that only one of the two has; the table is made by the file of sql/hierarchy."""
    con.execute(f"CREATE OR REPLACE TABLE {table} AS {sql.text(f'hierarchy/{table}')}")
    con.execute(f"CREATE OR REPLACE TABLE plain AS {(PLAIN / f'{table}.sql').read_text()}")
    ours = f"(FROM {table} EXCEPT ALL FROM plain) UNION ALL (FROM plain EXCEPT ALL FROM {table})"
    return con.execute(ours).fetchall()


def agents_and_calls(con: duckdb.DuckDBPyConnection, seed: int) -> None:
    """Tables `agent_spans`, `outer_work` and `waiting` of some attempts: agents of few names, nested and side by side."""
    draw = random.Random(seed)
    agents: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    for attempt in range(1, 40):
        first = 1000 * attempt
        for node in range(first, first + draw.randint(1, 8)):
            outer = draw.choice([None, *range(first, node)])
            start = draw.randint(0, 40) * STEP
            end = _NEVER if draw.random() < 0.1 else start + draw.randint(0, 40) * STEP
            agents.append(
                {"node": node, "attempt": attempt, "outer_node": outer, "agent": draw.choice("abc")}
                | {"agent_path": str(node), "start_ns": start, "end_ns": end, "runs": draw.random() < 0.9}
            )
        for node in range(first + 100, first + 100 + draw.randint(0, 12)):
            start = draw.randint(0, 90) * STEP
            end = None if draw.random() < 0.2 else start + draw.choice([0, 1, 4, 5, 6, 30]) * STEP
            waiting.append({"node": node, "attempt": attempt, "start_ns": start, "end_ns": end})
    columns = "node BIGINT, attempt BIGINT, outer_node BIGINT, agent VARCHAR, agent_path VARCHAR, start_ns BIGINT, end_ns BIGINT, runs BOOLEAN"
    sql_rig.put(con, "agent_spans", columns, agents)
    sql_rig.put(con, "outer_work", "node BIGINT", [agent for agent in agents if draw.random() < 0.1])
    sql_rig.put(con, "waiting", "node BIGINT, attempt BIGINT, start_ns BIGINT, end_ns BIGINT", waiting)


@pytest.mark.parametrize("seed", range(8))
def test_the_agents_whose_time_holds_a_span_are_those_that_pairs_find(
    con: duckdb.DuckDBPyConnection, seed: int
) -> None:
    agents_and_calls(con, seed)
    assert differences(con, "agent_times") == []
    differing = differences(con, "enclosing_agent")
    assert {row[1] for row in differing} <= {"ambiguous"}
    assert con.execute(_COUNTED_MORE).fetchall() == []
    methods = con.execute("SELECT DISTINCT method FROM enclosing_agent ORDER BY ALL").fetchall()
    assert methods == [("ambiguous",), ("same_name",), ("time",)]
