"""Epochs to measure with, written as the decoder would have left them: any number of spans, a rollout like the next.

A rollout has its root, an agent, a reward, and between them turns of a call (96 + 24 token ids) and a tool. `flat`: all
turns under the agent. `nested`: every twelve spans a sub-agent with two steps, which hold its calls and tools. `lost`: as
flat, but calls are in traces of their own, as the gateway leaves those of an agent that sends no `traceparent`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa

from lightning_core.lake import parquet, schema
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, SpanFile, SpanManifest
from lightning_core.lake.number_facts import measured
from lightning_core.lake.parquet import ROWS_A_GROUP

Shape = Literal["flat", "nested", "lost"]
PROMPT, RESPONSE, GROUP = 96, 24, 8
_SPANS_A_FILE, _SPANS_A_RECORD = 1_000_000, 512
_FLAT = {
    "op": "CASE WHEN p = 0 THEN 'rollout' WHEN p = 1 THEN 'agent' WHEN p = n - 1 THEN 'reward' WHEN p % 2 = 0 THEN 'llm' "
    "ELSE 'tool' END",
    "parent": "CASE WHEN p = 0 THEN NULL WHEN p = 1 OR p = n - 1 THEN 0 ELSE 1 END",
}
# p: place in the rollout; n: its spans.
_SHAPES: dict[str, dict[str, str]] = {
    "flat": _FLAT,
    "lost": _FLAT | {"parent": "CASE WHEN p = 0 OR p % 2 = 0 AND p < n - 1 THEN NULL WHEN p = 1 OR p = n - 1 THEN 0 ELSE 1 END"},
    "nested": {
        "op": "CASE WHEN p = 0 THEN 'rollout' WHEN p = 1 OR (p - 2) % 12 = 0 AND p < n - 1 THEN 'agent' WHEN p = n - 1 THEN "
        "'reward' WHEN (p - 2) % 12 IN (1, 6) THEN 'chain' WHEN p % 2 = 0 THEN 'llm' ELSE 'tool' END",
        "parent": "CASE WHEN p = 0 THEN NULL WHEN p = 1 OR p = n - 1 THEN 0 WHEN (p - 2) % 12 = 0 THEN 1 "
        "WHEN (p - 2) % 12 IN (1, 6) THEN p - (p - 2) % 12 ELSE p - (p - 2) % 12 + CASE WHEN (p - 2) % 12 < 6 THEN 1 ELSE 6 END END",
    },
}  # fmt: skip
_LLM = "CASE WHEN op = 'llm' THEN {} END"
_COLUMNS = {
    "rollout_id": "printf('bench/0000/t%07d.%d', r // 8, r % 8)",
    "attempt_id": "printf('%016x', hash(r))",
    "scope": "'path'",
    "trace_id": "printf('%016x%016x', hash(r), hash(CASE WHEN parent IS NULL THEN p ELSE 0 END))",
    "span_id": "printf('%016x', r * 100003 + p)",
    "parent_span_id": "CASE WHEN parent IS NOT NULL THEN printf('%016x', r * 100003 + parent) END",
    "name": "CASE op WHEN 'llm' THEN 'openai.chat.completion' WHEN 'agent' THEN 'invoke_agent' ELSE op END",
    "kind": "'internal'",
    "op": "op",
    "start_ns": "1790000000000000000 + r * 1000000000 + p * 100000",
    "end_ns": "1790000000000000000 + r * 1000000000 + 100000 * CASE WHEN p < 2 THEN n ELSE p + CASE op WHEN 'agent' THEN 12 "
    "WHEN 'chain' THEN 5 ELSE 0.9 END END",
    "status": "'ok'",
    "agent_name": "CASE WHEN op = 'agent' THEN CASE WHEN p = 1 THEN 'solver' ELSE 'helper' END END",
    "agent_name_source": "CASE WHEN op = 'agent' THEN 'gen_ai.agent.name' END",
    "run": "CASE WHEN p = 0 THEN 'bench' END",
    "epoch": "CASE WHEN p = 0 THEN 0 END",
    "mode": "CASE WHEN p = 0 THEN 'train' END",
    "group_id": "CASE WHEN p = 0 THEN printf('t%07d', r // 8) END",
    "task_id": "CASE WHEN p = 0 THEN printf('t%07d', r // 8) END",
    "outcome": "CASE WHEN p = 0 THEN 'ok' END",
    "policy": _LLM.format("'policy'"),
    "policy_version": _LLM.format("'v0000'"),
    "model": _LLM.format("'policy'"),
    "response_id": _LLM.format("printf('chatcmpl-%016x%016x', hash(r, p), hash(p, r))"),
    "input_tokens": _LLM.format(PROMPT),
    "output_tokens": _LLM.format(RESPONSE),
    "prompt_ids": _LLM.format(f"list_transform(range({PROMPT}), lambda x: (hash(r // 8, p // 16, x) % 49152)::INTEGER)"),
    "response_ids": _LLM.format(f"list_transform(range({RESPONSE}), lambda x: (hash(r, p, x) % 49152)::INTEGER)"),
    "response_logprobs": _LLM.format(f"list_transform(range({RESPONSE}), lambda x: (-0.001 * (hash(p, r, x) % 1000))::FLOAT)"),
    "tool_name": "CASE WHEN op = 'tool' THEN 'search' END",
    "tool_call_id": "CASE WHEN op = 'tool' THEN printf('call_%016x', hash(r, p)) END",
    "reward": "CASE WHEN op = 'reward' THEN (hash(r) % 100) / 100.0 END",
    "reward_name": "CASE WHEN op = 'reward' THEN 'reward' END",
    "reward_source": "CASE WHEN op = 'reward' THEN 'agent' END",
    "attributes": "MAP {'gen_ai.system': 'openai', 'server.address': '127.0.0.1'}",
    "resource": "MAP {'service.name': 'agent'}",
    "received_ns": "0",
    "record_offset": f"i // {_SPANS_A_RECORD}",
    "record_index": f"i % {_SPANS_A_RECORD}",
    "content_hash": "(hash(r, p) // 2)::BIGINT",
}  # fmt: skip


def write_epoch(home: Path, spans: int, spans_a_rollout: int, shape: Shape) -> tuple[EpochManifest, int]:
    """A lake with one epoch of about so many spans, in files as compaction leaves them; returns it and their number.

    The first file is computed, span by span; further ones are its rollouts again, under other ids.
    """
    rollouts = max(spans // spans_a_rollout, GROUP) // GROUP * GROUP
    lake = Lake(home)
    (lake.root / "spans").mkdir(parents=True)
    rollouts_a_file = max(_SPANS_A_FILE // spans_a_rollout // GROUP, 1) * GROUP
    records = -(-rollouts_a_file * spans_a_rollout // _SPANS_A_RECORD)
    files: list[SpanFile] = []
    with duckdb.connect(config={"memory_limit": "2GB"}) as con:
        for number, first in enumerate(range(0, rollouts, rollouts_a_file)):
            rows = min(rollouts_a_file, rollouts - first) * spans_a_rollout
            again = _again(lake.root / files[0].path, rows, first // GROUP, number * records) if files else None
            path = f"spans/{number:020d}.parquet"
            _write(con, lake.root / path, again or _computed(rows, spans_a_rollout, shape))
            start = number * records
            files.append(SpanFile(path=path, rows=rows, bytes=1, start=start, end=start + -(-rows // _SPANS_A_RECORD)))
    lake.manifests.put_spans(SpanManifest(decoded_offset=files[-1].end, files=files))
    return EpochManifest(run="bench", epoch=0, opened_offset=0, sealed_offset=files[-1].end), rollouts * spans_a_rollout


def _write(con: duckdb.DuckDBPyConnection, path: Path, query: str) -> None:
    stored = schema.arrow_schema(schema.SPANS)
    found = (pa.Table.from_batches([batch]).cast(stored) for batch in con.sql(query).to_arrow_reader(ROWS_A_GROUP))
    parquet.write_stream(path, stored, (batch for table in found for batch in measured(table).to_batches()))


def _computed(rows: int, spans_a_rollout: int, shape: Shape) -> str:
    columns = ", ".join(f"({_COLUMNS.get(c.name, 'NULL')})::{c.type} AS {c.name}" for c in schema.SPANS)
    return f"""
        SELECT {columns}
        FROM (SELECT *, {_SHAPES[shape]["op"]} AS op, {_SHAPES[shape]["parent"]} AS parent FROM (
            SELECT range AS i, range // {spans_a_rollout} AS r, range % {spans_a_rollout} AS p, {spans_a_rollout} AS n
            FROM range({rows})
        ))
        """


def _again(file: Path, rows: int, groups: int, records: int) -> str:
    """The first rows of a file, their groups and records numbered on from so many."""
    return f"""
        SELECT * REPLACE (
            printf('bench/0000/t%07d%s', substr(rollout_id, 13, 7)::INTEGER + {groups}, substr(rollout_id, 20)) AS rollout_id,
            printf('%016x', hash(attempt_id, {groups})) AS attempt_id,
            printf('t%07d', substr(group_id, 2)::INTEGER + {groups}) AS group_id,
            printf('t%07d', substr(task_id, 2)::INTEGER + {groups}) AS task_id,
            record_offset + {records} AS record_offset
        )
        FROM (FROM read_parquet('{file}') LIMIT {rows})
        """
