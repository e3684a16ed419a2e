"""Requests that cost the decoder far more than they cost to send, or stopped it: each found by a review."""

from __future__ import annotations

import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from lightning_core.lake import decode
from lightning_core.otlp import columns, locate, messages, values
from tests import decoding as d
from tests.property.test_decode_fuzz import length, with_span


def twice_in_one_another(levels: int) -> bytes:
    """A KeyValue of so many maps in one another, each with a key twice."""
    raw = AnyValue(int_value=1).SerializeToString()
    once = b"\x0a\x01k"
    for _ in range(levels):
        pair = once + b"\x12" + length(raw) + raw
        raw = b"\x0a" + length(once) + once + b"\x0a" + length(pair) + pair
        raw = b"\x32" + length(raw) + raw
    return once + b"\x12" + length(raw) + raw


def test_maps_in_one_another_with_a_key_twice_are_no_deeper_than_json_can_be() -> None:
    pair = twice_in_one_another(200)
    hostile = d.good(2).SerializeToString() + b"\x4a" + length(pair) + pair
    event = b"\x1a" + length(pair) + pair
    hostile += b"\x5a" + length(event) + event
    side = [d.good(1).SerializeToString()]
    rows, rejected = d.read(with_span(side, hostile, side))
    assert rejected == [] and len(rows) == 3
    assert "otlp.too_deep" in rows[1]["attributes"]["k"] and "otlp.too_deep" in rows[1]["events"]
    resource = b"\x0a" + length(pair) + pair
    scope_spans = b"\x12" + length(side[0]) + side[0]
    body = b"\x0a" + length(resource) + resource + b"\x12" + length(scope_spans) + scope_spans
    (row,), rejected = d.read(b"\x0a" + length(body) + body)
    assert rejected == [] and "otlp.too_deep" in row["resource"]["k"]


def test_spans_that_are_broken_alike_are_found_in_one_pass() -> None:
    def pair(key: bytes, broken: bool) -> bytes:
        raw = b"\x2a\x03\x0a\xff\x01" if broken else b"\x18\x01"  # an array whose element is cut off
        raw = b"\x0a" + length(key) + key + b"\x12" + length(raw) + raw
        return b"\x4a" + length(raw) + raw

    span = d.good(2).SerializeToString()
    twice = [span + pair(b"k", True) + pair(b"k", False)] * 30
    named = [span + pair(key, True) for key in (b"k", b"gen_ai.request.model", b"gen_ai.agent.name", b"metadata")]
    rows, rejected = d.read(with_span([*twice, *named], span, []))
    assert len(rows) == 1 and len(rejected) == 34


def test_a_resource_that_would_be_copied_too_often_is_whole_once(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = {"service.name": "s", "large": "x" * 5000, "other": "y" * 200}
    body = d.request(*(d.good(n) for n in range(1, 101)), resource=resource)
    neighbour = d.request(d.good(200), d.good(201), resource={"service.name": "n", "list": "z" * 1000})
    whole, _ = d.read(body, neighbour)
    assert all(row["resource"] == resource for row in whole[:100])
    monkeypatch.setattr(locate, "_COPIED", 100_000)
    rows, rejected = d.read(body, neighbour)
    assert rejected == [] and [row["content_hash"] for row in rows] == [row["content_hash"] for row in whole]
    assert rows[0]["resource"] == resource and rows[100:] == whole[100:]
    for row in rows[1:100]:
        lost = orjson.loads(row["resource"].pop("otlp.resource.shortened"))
        assert lost == {"attributes": 1, "characters": 5005}
        assert row["resource"] == {"service.name": "s", "other": "y" * 200}


def test_a_resource_that_too_many_scopes_name_is_not_read_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = ExportTraceServiceRequest()
    resource_spans = sent.resource_spans.add()
    resource_spans.resource.attributes.append(d.pair("large", "x" * 5000))
    for n in range(1, 11):
        scope_spans = resource_spans.scope_spans.add(spans=[d.good(n)])
        scope_spans.scope.name = f"scope {n}"
    monkeypatch.setattr(locate, "_READ", 30_000)
    rows, rejected = d.read(sent.SerializeToString())
    assert [row["record_index"] for row in rows] == [0, 1, 2, 3, 4]
    assert [entry["index"] for entry in rejected] == [5, 6, 7, 8, 9]
    assert all("resource" in entry["reason"] and entry["span"] for entry in rejected)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (b"\x5a\x00" * 101, "more than 100 events"),
        (b"\x6a\x00" * 101, "more than 100 links"),
        (b"\x08\x00" * 101, "more than 100 unknown fields"),
        (b"\x08\x00" * 601, "more than 500 fields"),
    ],
)
def test_a_span_with_more_than_is_worth_the_memory_is_rejected(
    monkeypatch: pytest.MonkeyPatch, extra: bytes, reason: str
) -> None:
    monkeypatch.setattr(columns, "_MOST", 100)
    monkeypatch.setattr(messages, "_MOST_FIELDS", 500)
    side = [d.good(1).SerializeToString()]
    assert d.read(with_span(side, side[0] + extra[:200], side))[1] == []
    rows, (entry,) = d.read(with_span(side, side[0] + extra, side))
    assert len(rows) == 2 and reason in entry["reason"]


def test_a_value_of_too_many_values_is_rejected_with_its_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_MOST_VALUES", 100)
    side = [d.good(1).SerializeToString()]
    few, many = (d.good(2, attributes=[d.pair("k", [""] * n)]).SerializeToString() for n in (99, 100))
    assert d.read(with_span(side, few, side))[1] == []
    rows, (entry,) = d.read(with_span(side, many, side))
    assert len(rows) == 2 and "more than 100 values" in entry["reason"]


def test_blocks_are_cut_by_the_bytes_of_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    body = d.request(*(d.good(n, name="x" * 1000) for n in range(1, 31)))
    at_once = d.read(body)
    blocks = []
    read_once = decode.span_columns
    monkeypatch.setattr(decode, "span_columns", lambda *a: blocks.append(len(a[1])) or read_once(*a))
    monkeypatch.setattr(decode, "_SPAN_BYTES_AT_ONCE", 5000)
    assert d.read(body) == at_once
    assert sum(blocks) == 30 and max(blocks) <= 5
