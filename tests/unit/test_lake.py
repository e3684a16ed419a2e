"""Spool → Parquet → catalog, with requests as exporters send them."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from lightning_core import names
from lightning_core.lake import ask, catalog, schema
from lightning_core.lake.decode import Decoder, aliases
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.otlp.spans import SpanData, encode_request, float32_bytes, int32_bytes
from lightning_core.spool.spool import Record, SpoolWriter
from tests.examples import of_many


def record(body: bytes, rollout: str | None = "r.1", attempt: str | None = "a1") -> Record:
    return Record(rollout, attempt, "path" if rollout else "none", 5, "otlp", body)


def span(name: str = "chat policy", number: int = 1, /, **attributes: Any) -> SpanData:
    return SpanData(name, 1_000, 2_000, "01" * 16, f"{number:016x}", attributes=attributes)


DECODER = Decoder()


def decode(*bodies: bytes, **scope: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    table, rejected = DECODER.decode([(i, i + 1, record(body, **scope)) for i, body in enumerate(bodies)])
    assert table.schema.equals(schema.arrow_schema(schema.SPANS))
    return table.to_pylist(maps_as_pydicts="strict"), rejected


def fill(home: Path, bodies: list[bytes]) -> None:
    async def write() -> None:
        writer = SpoolWriter(home / "spool", 1 << 30)
        for body in bodies:
            await writer.append(record(body))
        writer.close()

    asyncio.run(write())


def test_a_gateway_call_becomes_typed_columns() -> None:
    attributes: dict[str, Any] = {
        names.POLICY: "policy",
        names.POLICY_VERSION: "v0001",
        names.PROMPT_TOKEN_IDS: int32_bytes([1, 2, 3]),
        names.RESPONSE_TOKEN_IDS: int32_bytes([4]),
        names.RESPONSE_LOGPROBS: float32_bytes([-0.25]),
        names.GEN_AI_RESPONSE_ID: "chatcmpl-1",
        names.GEN_AI_OUTPUT_TOKENS: 1,
        "something.else": "stays",
    }
    (row,), rejected = decode(encode_request({"service.name": "gateway"}, [span(**attributes)]))
    assert rejected == []
    assert (row["op"], row["policy"], row["policy_version"]) == ("llm", "policy", "v0001")
    assert (row["prompt_ids"], row["response_ids"], row["response_logprobs"]) == ([1, 2, 3], [4], [-0.25])
    assert (row["response_id"], row["output_tokens"]) == ("chatcmpl-1", 1)
    assert row["attributes"] == {"something.else": "stays"}
    assert row["resource"] == {"service.name": "gateway"}
    assert (row["rollout_id"], row["attempt_id"], row["scope"]) == ("r.1", "a1", "path")
    assert (row["start_ns"], row["end_ns"], row["span_id"]) == (1_000, 2_000, "0000000000000001")


def test_token_ids_come_as_bytes_arrays_or_json() -> None:
    body = encode_request(
        {}, [span("chat policy", 1, prompt_token_ids="[7, 8]"), span("chat policy", 2, prompt_token_ids=[7, 8])]
    )
    rows, _ = decode(body, rollout=None, attempt=None)
    assert [row["prompt_ids"] for row in rows] == [[7, 8], [7, 8]]


def test_the_authenticated_scope_wins_over_what_the_agent_wrote() -> None:
    body = encode_request({names.ROLLOUT_ID: "forged"}, [span(**{names.ROLLOUT_ID: "forged too"})])
    (with_scope,), _ = decode(body)
    (without,), _ = decode(body, rollout=None, attempt=None)
    assert (with_scope["rollout_id"], with_scope["scope"]) == ("r.1", "path")
    assert (without["rollout_id"], without["scope"]) == ("forged", "resource")


@pytest.mark.parametrize(
    ("name", "attributes", "expected"),
    [
        ("step", {"gen_ai.agent.name": "planner"}, ("planner", "gen_ai.agent.name")),
        ("step", {"graph.node.id": "b", "agent.name": "a"}, ("a", "agent.name")),
        ("planner.run", {"openinference.span.kind": "AGENT"}, ("planner", "span name")),
        ("step", {"metadata": '{"langgraph_node": "writer"}'}, ("writer", "metadata.langgraph_node")),
        ("x", {"agentops.span.kind": "agent", "operation.name": "critic"}, ("critic", "operation.name")),
        ("step", {"metadata": "not json"}, (None, None)),
        ("step", {}, (None, None)),
    ],
)
def test_agents_are_named_as_the_frameworks_name_them(name: str, attributes: dict[str, Any], expected: Any) -> None:
    (row,), _ = decode(encode_request({}, [span(name, **attributes)]))
    assert (row["agent_name"], row["agent_name_source"]) == expected


def test_the_losing_alias_stays_an_attribute() -> None:
    (row,), _ = decode(encode_request({}, [span(**{"llm.model_name": "b", "gen_ai.request.model": "a"})]))
    assert row["model"] == "a" and row["attributes"] == {"llm.model_name": "b"}


def test_a_span_that_cannot_be_decoded_is_kept_aside_and_its_neighbours_go_on() -> None:
    request = ExportTraceServiceRequest.FromString(encode_request({}, [span("chat policy", 1), span("chat policy", 2)]))
    request.resource_spans[0].scope_spans[0].spans[0].trace_id = b""
    rows, rejected = decode(request.SerializeToString())
    assert [row["span_id"] for row in rows] == ["0000000000000002"]
    assert rejected[0]["index"] == 0 and "without trace id" in rejected[0]["reason"]


def test_bytes_that_are_no_request_are_rejected_with_their_offset() -> None:
    rows, rejected = decode(b"\xff\xff\xff", encode_request({}, [span()]))
    assert len(rows) == 1 and rejected[0]["offset"] == 0


_scalars = strategies.one_of(
    strategies.text(max_size=20),
    strategies.booleans(),
    strategies.integers(-(2**63), 2**63 - 1),
    strategies.floats(),
    strategies.binary(max_size=16),
)


def any_value(value: Any) -> AnyValue:
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=[any_value(v) for v in value]))
    kinds = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value", bytes: "bytes_value"}
    return AnyValue(**{kinds[type(value)]: value})


@of_many(examples=15)
@given(
    values=strategies.dictionaries(
        strategies.one_of(strategies.text(max_size=12), strategies.sampled_from(sorted(aliases()))),
        strategies.one_of(_scalars, strategies.lists(_scalars, max_size=3)),
        max_size=8,
    ),
    start=strategies.integers(0, 2**64 - 1),
    end=strategies.integers(0, 2**64 - 1),
)
def test_whatever_the_attributes_hold_the_span_is_there_and_nothing_of_it_is_lost(
    values: dict[str, Any], start: int, end: int
) -> None:
    request = ExportTraceServiceRequest.FromString(encode_request({}, [span()]))
    raw = request.resource_spans[0].scope_spans[0].spans[0]
    raw.start_time_unix_nano, raw.end_time_unix_nano = start, end
    del raw.attributes[:]
    raw.attributes.extend(KeyValue(key=k, value=any_value(v)) for k, v in values.items())
    (row,), rejected = decode(request.SerializeToString())
    assert rejected == []
    for key in values:
        alias = aliases().get(key)
        empty = values[key] in ("", b"")  # an agent without a name is none
        assert key in row["attributes"] or (alias is not None and (empty or row[alias.column] is not None))


def test_decoding_the_same_range_again_writes_the_same_bytes(tmp_path: Path) -> None:
    bodies = [encode_request({}, [span("chat policy", i, **{"k": "v" * i})]) for i in range(1, 20)]
    written = []
    for home in (tmp_path / "a", tmp_path / "b"):
        fill(home, bodies)
        lake = Lake(home)
        lake.ingest()
        (file,) = lake.manifests.spans().files
        written.append((file.path, (lake.root / file.path).read_bytes()))
    assert written[0] == written[1]


def test_a_decoder_killed_before_its_manifest_decodes_again_and_loses_nothing(tmp_path: Path) -> None:
    fill(tmp_path, [encode_request({}, [span("chat policy", 1)])])
    lake = Lake(tmp_path)
    lake.ingest()
    kept = (lake.root / "manifests/spans.json").read_bytes()
    fill(tmp_path, [encode_request({}, [span("chat policy", 2)])])
    lake.ingest()
    (lake.root / "manifests/spans.json").write_bytes(kept)  # as if killed after the Parquet file was there
    lake.ingest()
    with lake.connect() as con:
        assert con.execute("SELECT span_id FROM spans ORDER BY 1").fetchall() == [
            ("0000000000000001",),
            ("0000000000000002",),
        ]


def test_the_catalog_works_before_the_first_epoch_and_after_the_folder_moved(tmp_path: Path) -> None:
    home = tmp_path / "here"
    fill(home, [encode_request({}, [span(**{names.POLICY: "policy"})])])
    Lake(home).ingest()
    Lake(home).rebuild_catalog()
    shutil.move(home, tmp_path / "there")
    root = tmp_path / "there" / "lake"
    with catalog.connect(root) as con:
        assert con.execute("SELECT count(*) FROM calls").fetchone() == (1,)
    assert "epoch_report" in ask.overview(root)
    assert json.loads(ask.answer(root, "SELECT count(*) AS n FROM spans", "json")) == {"n": 1}
    query = "import duckdb; print(duckdb.connect('catalog.duckdb', read_only=True).sql('FROM spans').fetchall()[0][0])"
    done = subprocess.run([sys.executable, "-c", query], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "r.1", "started in the lake's folder, plain DuckDB reads it too"


def test_asking_before_anything_was_decoded_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run an epoch"):
        catalog.connect(tmp_path)


def test_a_manifest_that_cannot_be_read_names_the_file(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    (lake.root / "manifests").mkdir(parents=True)
    (lake.root / "manifests/spans.json").write_text('{"decoded_offset": "x"')
    with pytest.raises(RuntimeError, match=r"spans\.json"):
        lake.ingest()


def test_spans_are_sorted_by_rollout_in_their_file(tmp_path: Path) -> None:
    async def write() -> None:
        writer = SpoolWriter(tmp_path / "spool", 1 << 30)
        for name in ("r.2", "r.1", "r.3"):
            await writer.append(record(encode_request({}, [span()]), rollout=name))
        writer.close()

    asyncio.run(write())
    lake = Lake(tmp_path)
    lake.ingest()
    (file,) = lake.manifests.spans().files
    assert pq.read_table(lake.root / file.path)["rollout_id"].to_pylist() == ["r.1", "r.2", "r.3"]


def test_epochs_are_in_order_of_their_numbers_also_with_more_than_four_digits(tmp_path: Path) -> None:
    manifests = Lake(tmp_path).manifests
    for number in (10_000, 9_999):
        epoch = EpochManifest(run="r", epoch=number, opened_offset=0)
        epoch.finish("record", "key", {}, 0.0)
        manifests.put_epoch(epoch)
    assert [epoch.epoch for epoch in manifests.epochs("r")] == [9_999, 10_000] and manifests.next_epoch("r") == 10_001
