"""What is known of token ids and logprobs without reading them, and that calls are judged by it as by the lists."""

from __future__ import annotations

import math
from typing import Any

import duckdb
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lightning_core.lake import schema
from lightning_core.lake.number_facts import FACTS, measured
from tests import sql_rig
from tests.examples import of_many

_IDS = st.none() | st.lists(st.integers(-2, 40), max_size=4)
_LOGPROBS = st.none() | st.lists(st.sampled_from([-1.5, 0.0, 0.0005, 0.1, math.inf, -math.inf, math.nan]), max_size=4)
_SPANS = st.lists(st.tuples(_IDS, _IDS, _LOGPROBS, st.none() | st.lists(st.integers(-1, 3), max_size=3)), max_size=12)


def _table(spans: list[tuple[Any, ...]]) -> pa.Table:
    names = ("prompt_ids", "response_ids", "response_logprobs", "choice_lengths")
    rows = [
        dict(zip(names, span, strict=True)) | {"record_offset": place, "record_index": 0, "policy": "policy"}
        for place, span in enumerate(spans)
    ]
    return measured(pa.Table.from_pylist(rows, schema=schema.arrow_schema(schema.SPANS)))


@of_many(20)
@given(_SPANS)
def test_facts_are_those_of_the_lists(spans: list[tuple[Any, ...]]) -> None:
    table = _table(spans).slice(1)  # lists that do not begin where their numbers do
    again = measured(pa.table([column.combine_chunks() for column in table.columns], schema=table.schema))
    for found in (table, again):
        for (prompt, response, logprobs, _), row in zip(spans[1:], found.select(FACTS).to_pylist(), strict=True):
            ids = [*(prompt or ()), *(response or ())]
            counts = [None if numbers is None else len(numbers) for numbers in (prompt, response, logprobs)]
            assert [row[name] for name in FACTS[:3]] == counts
            assert (row["lowest_token_id"], row["highest_token_id"]) == ((min(ids), max(ids)) if ids else (None, None))
            if any(map(math.isnan, logprobs or ())):
                assert math.isnan(row["lowest_logprob"]) and math.isnan(row["highest_logprob"])
            elif logprobs:
                assert [row["lowest_logprob"], row["highest_logprob"]] == list(_single([min(logprobs), max(logprobs)]))
            else:
                assert row["lowest_logprob"] is None and row["highest_logprob"] is None


@of_many(5)
@given(_SPANS)
def test_a_file_written_before_there_were_facts_gives_the_same_flaws(spans: list[tuple[Any, ...]]) -> None:
    table = _table(spans)
    forgotten = table
    for name in FACTS[2:]:
        forgotten = forgotten.set_column(
            table.schema.get_field_index(name),
            table.schema.field(name),
            pa.nulls(len(table), table.schema.field(name).type),
        )
    assert _flaws(table) == _flaws(forgotten)


def _flaws(table: pa.Table) -> list[dict[str, Any]]:
    with duckdb.connect(config={"threads": 1}) as con:
        con.register("spans", table)
        con.execute("CREATE TABLE policies AS SELECT 'policy' AS policy, 30 AS vocabulary, 'train' AS truncated")
        con.execute(
            "CREATE TABLE call_rows AS SELECT record_offset AS call_id, record_offset, record_index, policy, false AS tokenized, prompt_id_count AS prompt_tokens, response_id_count AS response_tokens FROM spans"
        )
        con.execute(
            "CREATE TABLE tokenized_calls (record_offset BIGINT, record_index INTEGER, prompt_ids INTEGER[], response_ids INTEGER[], flaw VARCHAR)"
        )
        sql_rig.run(con, "triplets/measured_calls", "triplets/sampled_calls")
        return sql_rig.rows(con, "SELECT call_id, flaw FROM sampled_calls ORDER BY call_id")


def _single(numbers: list[float]) -> Any:
    return pa.array(numbers, pa.float32()).to_pylist()
