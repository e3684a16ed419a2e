"""Requests that cost the decoder far more than they cost to send, or stopped it: each found by a review."""

from __future__ import annotations

from opentelemetry.proto.common.v1.common_pb2 import AnyValue

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
