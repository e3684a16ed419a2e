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
    SELECT node FROM holding_agent FULL JOIN plain USING (node, method)
    WHERE plain.candidates IS NULL OR holding_agent.candidates IS NULL OR holding_agent.candidates > plain.candidates
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
            ended = None if draw.random() < 0.2 else start + draw.choice([0, 1, 4, 5, 6, 30]) * STEP
            waiting.append({"node": node, "attempt": attempt, "start_ns": start, "end_ns": ended})
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
    differing = differences(con, "holding_agent")
    assert {row[1] for row in differing} <= {"ambiguous"}
    assert con.execute(_COUNTED_MORE).fetchall() == []
    methods = con.execute("SELECT DISTINCT method FROM holding_agent ORDER BY ALL").fetchall()
    assert methods == [("ambiguous",), ("same_name",), ("time",)]


def calls_and_records(con: duckdb.DuckDBPyConnection, seed: int) -> None:
    """Spans of some attempts: LLM spans with few response ids, contents and token ids, in each other or not."""
    draw = random.Random(seed)
    nodes: list[dict[str, Any]] = []
    spans: list[dict[str, Any]] = []
    declared: list[dict[str, Any]] = []
    content: list[dict[str, Any]] = []
    for attempt in range(1, 60):
        first = 100 * attempt
        for node in range(first, first + draw.randint(2, 9)):
            op = draw.choice(["llm", "llm", "llm", "other", "agent"])
            ids = draw.choice([None, None, ([1], [2]), ([1], [3]), ([1, 1], [2])])
            start = draw.randint(0, 12) * STEP
            row = {"node": node, "attempt": attempt, "op": op, "record_offset": node, "record_index": 0}
            row["response_key"] = draw.choice([None, None, 10 * attempt, 10 * attempt + 1])
            row["policy"] = draw.choice([None, "policy"])
            row |= {"start_ns": start, "end_ns": draw.choice([None, start, start + 3 * STEP, start + 20 * STEP])}
            if ids is not None:
                row |= {"prompt_tokens": len(ids[0]), "response_tokens": len(ids[1])}
            nodes.append(row)
            spans.append(row | dict(zip(("prompt_ids", "response_ids"), ids or (None, None), strict=True)))
            if node > first and draw.random() < 0.5:
                declared.append({"node": node, "parent": draw.randrange(first, node)})
            if op == "llm" and draw.random() < 0.7:
                models = draw.choice([[], ["a"], ["a", "b"], ["c"]])
                content.append(row | {"said": draw.choice("xyz"), "models": models})
    columns = (
        "node BIGINT, attempt BIGINT, op VARCHAR, response_key UBIGINT, policy VARCHAR, start_ns BIGINT, end_ns BIGINT"
    )
    place = "record_offset BIGINT, record_index INTEGER"
    sql_rig.put(con, "nodes", f"{columns}, {place}, prompt_tokens INTEGER, response_tokens INTEGER", nodes)
    sql_rig.put(con, "spans", f"{place}, prompt_ids INTEGER[], response_ids INTEGER[]", spans)
    sql_rig.put(con, "declared", "node BIGINT, parent BIGINT", declared)
    sql_rig.put(con, "llm_content", "node BIGINT, attempt BIGINT, said VARCHAR, models VARCHAR[]", content)
    sql_rig.run(con, "hierarchy/repeated_responses", "hierarchy/shared_ids", "hierarchy/outer_records")


@pytest.mark.parametrize("seed", [*range(6), 53])  # 53: two calls that say two things alike
def test_the_records_of_one_call_are_those_that_pairs_find(con: duckdb.DuckDBPyConnection, seed: int) -> None:
    calls_and_records(con, seed)
    assert differences(con, "llm_twins") == []
    methods = con.execute("SELECT DISTINCT method FROM llm_twins ORDER BY ALL").fetchall()
    assert methods == [("content",), ("nested",), ("response_id",)]


def trees(con: duckdb.DuckDBPyConnection, seed: int) -> None:
    """Spans of some attempts in trees, which agents are in, hang on each other or on a parent that never came, or which are broken."""
    draw = random.Random(seed)
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("nodes", "components", "hooks", "names", "agents", "missing")
    }
    evidence: list[dict[str, Any]] = []
    for attempt in range(1, 80):
        tops: list[int] = []
        depths: dict[int, tuple[int, int, int | None]] = {}  # node → its top, its depth, its agent
        for node in range(100 * attempt, 100 * attempt + draw.randint(2, 14)):
            missing = bool(tops) and draw.random() < 0.1
            above = draw.choice([*depths, None]) if depths and not missing else None
            top, depth, agent = (node, -1, None) if above is None else depths[above]
            depth += 1
            begins = draw.random() < 0.1
            agent = node if begins else agent
            depths[node] = top, depth, agent
            start = draw.choice([None, *range(9)])
            row = {"node": node, "attempt": attempt, "start_ns": start, "policy": draw.choice([None, "policy"])}
            row |= {
                "end_ns": draw.choice([None, start, 9]),
                "op": draw.choice(["llm", "llm", "other", "agent", "tool"]),
            }
            named = draw.random() < 0.1
            broken = above is None and bool(tops) and draw.random() < 0.1
            rows["components"].append(
                row | {"parent": above, "top": top, "depth": depth, "agent_node": agent, "broken": broken}
            )
            rows["missing" if missing else "nodes"].append(row | {"named": named})
            if named and not missing:
                rows["names"].append(row)
            if begins:
                rows["agents"].append(row | {"top": top, "runs": draw.random() < 0.8})
            if above is None:
                if tops and draw.random() < 0.3:
                    rows["hooks"].append({"top": node, "onto": draw.choice(tops)})
                if not missing:
                    method = draw.choice([None, None, "missing_parent", "tool_call"]) if tops else "root"
                    evidence.append({"node": node, "method": method})
                tops.append(node)
    spans = "node BIGINT, attempt BIGINT, start_ns BIGINT, end_ns BIGINT"
    sql_rig.put(con, "nodes", f"{spans}, op VARCHAR, policy VARCHAR", rows["nodes"])
    sql_rig.put(con, "missing_parents", f"{spans}, named BOOLEAN", rows["missing"])
    columns = "node BIGINT, parent BIGINT, top BIGINT, depth INTEGER, agent_node BIGINT, broken BOOLEAN"
    sql_rig.put(con, "components", columns, rows["components"])
    sql_rig.put(con, "hooks", "top BIGINT, onto BIGINT", rows["hooks"])
    sql_rig.put(con, "names", "node BIGINT", rows["names"])
    sql_rig.put(con, "agent_spans", "node BIGINT, attempt BIGINT, top BIGINT, runs BOOLEAN", rows["agents"])
    sql_rig.put(con, "evidence", "node BIGINT, method VARCHAR", evidence)
    clocks = [{"attempt": attempt, "ahead_ns": draw.randint(-3, 3)} for attempt in range(1, 80, 2)]
    sql_rig.put(con, "clocks", "attempt BIGINT, ahead_ns BIGINT", clocks)
    sql_rig.run(con, "hierarchy/agent_trees", "hierarchy/calls_under_roots")


@pytest.mark.parametrize("seed", range(6))
def test_the_spans_that_wait_for_an_agent_are_those_that_pairs_find(con: duckdb.DuckDBPyConnection, seed: int) -> None:
    trees(con, seed)
    assert differences(con, "waiting") == []
    waits = "SELECT op = 'llm' AND parent IS NOT NULL FROM waiting JOIN components USING (node) LEFT JOIN nodes USING (node)"
    assert set(con.execute(waits).fetchall()) >= {(True,), (False,)}  # right under a root, and tops
