"""Exporters as they come, from OpenTelemetry's SDKs for Node and Python: each field in the lake is the one sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, set_span_in_context

from lightning_core.config import GatewaySettings
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.lake import Lake
from tests import node_exporter
from tests.node_exporter import SPANS

# What each span of spans.json has in columns; its other attributes are in the map.
COLUMNS: dict[str, dict[str, Any]] = {
    "workflow": {"op": "other"},
    "agent": {"op": "agent", "operation": "invoke_agent", "agent_name": "planner"},
    "call": {
        "op": "llm",
        "operation": "chat",
        "response_id": "chatcmpl-1",
        "model": "policy",
        "input_tokens": 5,
        "output_tokens": 2,
        "prompt_ids": [1, 22, 333, 4444, 49151],
        "response_ids": [7, 0],
        "input_messages": '[{"role": "user", "content": "Was ist 6×7?"}]',
    },
    "tool": {
        "op": "tool",
        "operation": "execute_tool",
        "tool_name": "search",
        "tool_call_id": "call_1",
        "tool_arguments": '{"q": "six"}',
    },
    "produced": {"op": "other"},
    "alone": {"op": "reward", "reward": 0.75, "reward_name": "reward"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayHandle]:
    home = tmp_path_factory.mktemp("home")
    made = GatewayHandle.start(home, GatewaySettings(), home / "logs" / "gateway.log")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def node() -> Path:
    try:
        return node_exporter.install()
    except node_exporter.NodeMissing as error:
        pytest.skip(f"NO NON-PYTHON EXPORTER IS TESTED HERE: {error}")


def rows(server: GatewayHandle, rollout: str) -> dict[str, dict[str, Any]]:
    """What the lake has of a rollout, by span id; ingests what the server has acknowledged."""
    lake = Lake(server.home)
    lake.ingest(server.seal())
    with lake.connect() as con:
        found = con.sql("FROM spans WHERE rollout_id = ?", params=[rollout]).to_arrow_table().to_pylist()
    by_id = {row["span_id"]: row for row in found}
    assert len(by_id) == len(found) == len(SPANS)
    return by_id


def plain(texts: Any) -> dict[str, Any]:
    """An attribute map with what is not text read as JSON, which is how it is kept."""
    expected_text = {"text", "empty", "non-ascii", "why", "exception.type", "exception.message"}
    return {k: v if k in expected_text or k.startswith("quotes") else json.loads(v) for k, v in dict(texts).items()}


def assert_as_sent(row: dict[str, Any], ids: dict[str, dict[str, str]], given: dict[str, Any], flags: int) -> None:
    """flags: what this SDK says of every link (sampled, remote)."""
    mine = ids[given["key"]]
    parent = ids[given["parent"]]["span_id"] if given["parent"] else None
    envelope: dict[str, Any] = {"trace_id": mine["trace_id"], "span_id": mine["span_id"], "parent_span_id": parent}
    envelope |= {"start_ns": int(given["start_ns"]), "end_ns": int(given["end_ns"])}
    envelope |= {key: given[key] for key in ("name", "kind", "status", "status_message")}
    expected = envelope | COLUMNS[given["key"]]
    assert {key: row[key] for key in expected} == expected
    kept = plain(row["attributes"])
    if given["key"] == "workflow":
        assert kept == given["attributes"]
    else:
        assert kept == {}  # all of them have a column
    events = [e | {"attributes": plain(e["attributes"])} for e in json.loads(row["events"] or "[]")]
    assert events == [e | {"time_ns": int(e["time_ns"])} for e in given["events"]]
    links = [x | {"attributes": plain(x["attributes"])} for x in json.loads(row["links"] or "[]")]
    assert links == [x | {"flags": flags} for x in given["links"]]
    assert row["instrumentation"] in ("node-agent@1.2.3", "python-agent@1.2.3")


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json", "grpc"])
def test_nodes_exporters_need_nothing_but_the_standard_variables(
    server: GatewayHandle, node: Path, protocol: str, compression: str
) -> None:
    rollout = f"node, {protocol.replace('/', ' ')}, {compression}"
    endpoint = server.attempt_url(rollout, "a1")
    if protocol == "grpc":
        assert server.grpc_url is not None
        endpoint = server.grpc_url
    token = server.mint(rollout, "a1", "train")
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=" + quote(f"Bearer {token}"),
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_SERVICE_NAME": "node agent",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=prüfung,team=a%2Cb",
        "OTEL_NODE_RESOURCE_DETECTORS": "env",
        "OTEL_LOG_LEVEL": "warn",
    }
    ids = node_exporter.export(node, environment)
    found = rows(server, rollout)
    for given in SPANS:
        row = found[ids[given["key"]]["span_id"]]
        assert_as_sent(row, ids, given, flags=0x101)
        assert (row["attempt_id"], row["scope"]) == ("a1", "token" if protocol == "grpc" else "path")
        resource = dict(row["resource"])
        assert resource.items() >= {
            ("service.name", "node agent"),
            ("deployment.environment.name", "prüfung"),
            ("team", "a,b"),
            ("telemetry.sdk.language", "nodejs"),
        }


def test_pythons_exporter_delivers_the_same(server: GatewayHandle) -> None:
    token = server.mint("python", "a1", "train")
    exporter = OTLPSpanExporter(
        endpoint=server.attempt_url("python", "a1") + "/v1/traces", headers={"authorization": f"Bearer {token}"}
    )
    provider = TracerProvider(resource=Resource.create({"service.name": "python agent", "ratio": 0.5}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("python-agent", "1.2.3")
    opened: dict[str, Any] = {}
    for given in SPANS:
        span = tracer.start_span(
            given["name"],
            set_span_in_context(opened[given["parent"]]) if given["parent"] else None,
            SpanKind[given["kind"].upper()],
            given["attributes"],
            [Link(_context(x), x["attributes"]) for x in given["links"]],
            int(given["start_ns"]),
        )
        for event in given["events"]:
            span.add_event(event["name"], event["attributes"], int(event["time_ns"]))
        if given["status"] != "unset":
            span.set_status(Status(StatusCode[given["status"].upper()], given["status_message"]))
        opened[given["key"]] = span
    for given in reversed(SPANS):
        opened[given["key"]].end(int(given["end_ns"]))
    provider.shutdown()
    ids = {
        key: {"trace_id": f"{s.get_span_context().trace_id:032x}", "span_id": f"{s.get_span_context().span_id:016x}"}
        for key, s in opened.items()
    }
    found = rows(server, "python")
    for given in SPANS:
        row = found[ids[given["key"]]["span_id"]]
        assert_as_sent(row, ids, given, flags=0x300)
        assert dict(row["resource"]).items() >= {("service.name", "python agent"), ("ratio", "0.5")}


def _context(link: dict[str, Any]) -> SpanContext:
    return SpanContext(int(link["trace_id"], 16), int(link["span_id"], 16), True, TraceFlags(1))
