"""Whatever a span holds, it is in the lake: every field, exactly, on the numpy path (many spans) and the Python one (few)."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from lightning_core.lake import schema
from lightning_core.lake.decode import aliases
from tests import decoding as d
from tests.examples import of_many

QUICK = of_many(examples=10)
KINDS = {0: "unspecified", 1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
STATUSES = {0: "unset", 1: "ok", 2: "error"}
COPIES = 30  # of one span: more than the least that numpy takes at once


def check_envelope(row: dict[str, Any], span: Span) -> None:
    assert (row["trace_id"], row["span_id"]) == (span.trace_id.hex(), span.span_id.hex())
    assert row["parent_span_id"] == (span.parent_span_id.hex() if any(span.parent_span_id) else None)
    assert row["name"] == span.name
    assert row["kind"] == KINDS.get(span.kind, str(span.kind))
    assert row["status"] == STATUSES.get(span.status.code, str(span.status.code))
    assert (row["status_message"], row["trace_state"]) == (span.status.message or None, span.trace_state or None)
    for column, sent in (("start", span.start_time_unix_nano), ("end", span.end_time_unix_nano)):
        if sent < 2**63:
            assert row[f"{column}_ns"] == (sent or None)
        else:
            assert row[f"{column}_ns"] is None and row["attributes"][f"otlp.{column}_time_unix_nano"] == str(sent)
    assert row["flags"] == (span.flags or None)
    assert row["dropped_attributes"] == (span.dropped_attributes_count or None)
    assert row["dropped_events"] == (span.dropped_events_count or None)
    assert row["dropped_links"] == (span.dropped_links_count or None)


def check_records(row: dict[str, Any], span: Span) -> None:
    events, links = json.loads(row["events"] or "[]"), json.loads(row["links"] or "[]")
    for event, sent in zip(events, _filled(row, "events", span.events), strict=True):
        assert (event["time_ns"], event["name"]) == (sent.time_unix_nano, sent.name)
        assert event.get("dropped_attributes_count", 0) == sent.dropped_attributes_count
        check_attributes_json(event["attributes"], sent.attributes)
    for link, sent in zip(links, _filled(row, "links", span.links), strict=True):
        assert (link["trace_id"], link["span_id"]) == (sent.trace_id.hex(), sent.span_id.hex())
        assert (link.get("trace_state", ""), link.get("flags", 0)) == (sent.trace_state, sent.flags)
        assert link.get("dropped_attributes_count", 0) == sent.dropped_attributes_count
        check_attributes_json(link["attributes"], sent.attributes)


def _filled(row: dict[str, Any], label: str, sent: Any) -> list[Any]:
    """Those that say anything; the others are counted, and the count is taken out of the row."""
    filled = [one for one in sent if one.ByteSize()]
    empty = row["attributes"].pop(f"otlp.empty_{label}", None)
    assert empty == (str(len(sent) - len(filled)) if len(filled) < len(sent) else None)
    return filled


def check_attributes_json(found: Any, sent: Any) -> None:
    pairs = list(found.items()) if isinstance(found, dict) else [(item["key"], item["value"]) for item in found]
    assert [key for key, _ in pairs] == [item.key for item in sent]
    assert all(d.same_text(text, item.value) for (_, text), item in zip(pairs, sent, strict=True))


def check_attributes(row: dict[str, Any], span: Span) -> None:
    last = {item.key: item.value for item in span.attributes}
    rest = dict(row["attributes"])
    duplicates = sum(n - 1 for n in Counter(item.key for item in span.attributes).values())
    if duplicates:
        key = "otlp.duplicate_attributes"
        while key in last:
            key += "_"
        listed = json.loads(rest.pop(key))
        assert len(listed) == duplicates
        earlier = [
            item
            for i, item in enumerate(span.attributes)
            if item.key in {x.key for x in list(span.attributes)[i + 1 :]}
        ]
        for found, sent in zip(listed, earlier, strict=True):
            assert found["key"] == sent.key and d.same_text(found["value"], sent.value)
    for key in ("otlp.start_time_unix_nano", "otlp.end_time_unix_nano"):
        if key not in last:
            rest.pop(key, None)
    of_column: dict[str, list[tuple[int, str, Any]]] = {}
    for key, sent in last.items():
        alias = aliases().get(key)
        found = None if alias is None else d.readable(sent, alias.type)
        if alias is not None and found is not None:
            of_column.setdefault(alias.column, []).append((alias.rank, key, found))
        else:
            assert d.same_text(rest.pop(key), sent), key
    for column, candidates in of_column.items():
        _, winner, found = min(candidates, key=lambda c: c[:2])
        assert same(row[column], found), (column, winner)
        if column == "agent_name":
            assert row["agent_name_source"] == winner
        for _, key, other in candidates:
            if key == winner:
                assert key not in rest
            elif key in rest:
                assert d.same_text(rest.pop(key), last[key])
            else:
                assert same(row[column], other), "only what says the same may go"
    for column in {alias.column for alias in aliases().values()} - set(of_column):
        assert row[column] is None
    assert rest == {}


def same(found: Any, sent: Any) -> bool:
    if not isinstance(sent, str | int | float | list):
        return d.same_text(found, sent)
    if isinstance(sent, list):
        return len(found) == len(sent) and all(
            a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(found, sent, strict=True)
        )
    return found == sent or (isinstance(sent, float) and math.isnan(sent) and math.isnan(found))


@QUICK
@given(sent=st.lists(d.spans(), min_size=1, max_size=3), copies=st.sampled_from([1, COPIES]))
def test_every_field_of_a_span_comes_back(sent: list[Span], copies: int) -> None:
    spans = sent * copies
    rows, rejected = d.read(d.request(*spans))
    assert rejected == [] and len(rows) == len(spans)
    for index in range(len(sent)):
        row, span = rows[index], spans[index]
        check_envelope(row, span)
        check_records(row, span)
        check_attributes(row, span)
    for index, row in enumerate(rows):  # a copy is the same but for its place
        first = rows[index % len(sent)]
        assert repr(row | {"record_index": 0}) == repr(first | {"record_index": 0})


@QUICK
@given(
    resource=d.attributes, scope=d.attributes, name=d.texts, version=d.texts, urls=st.tuples(d.texts, d.texts),
    dropped=st.tuples(d.uint32s, d.uint32s),
)  # fmt: skip
def test_resource_and_scope_come_back(
    resource: Any, scope: Any, name: str, version: str, urls: tuple[str, str], dropped: tuple[int, int]
) -> None:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add(
        resource=Resource(attributes=resource, dropped_attributes_count=dropped[0]), schema_url=urls[0]
    )
    scope_spans = resource_spans.scope_spans.add(spans=[d.good()], schema_url=urls[1])
    scope_spans.scope.name, scope_spans.scope.version = name, version
    scope_spans.scope.attributes.extend(scope)
    scope_spans.scope.dropped_attributes_count = dropped[1]
    (row,), _ = d.read(request.SerializeToString())
    found = dict(row["resource"])
    last = {item.key: item.value for item in resource}
    for key, sent in last.items():
        assert d.same_text(found.pop(key), sent)
    ours = {key.rstrip("_"): text for key, text in found.items()}
    assert ours.pop("otlp.resource.schema_url", "") == urls[0] and ours.pop("otlp.scope.schema_url", "") == urls[1]
    assert ours.pop("otlp.resource.dropped_attributes_count", "0") == str(dropped[0])
    assert ours.pop("otlp.scope.dropped_attributes_count", "0") == str(dropped[1])
    check_attributes_json(json.loads(ours.pop("otlp.scope.attributes", "{}")), scope)
    named = ours.pop("otlp.scope.name", None)
    assert row["instrumentation"] == ((f"{name}@{version}" if version else name) or None)
    assert named == (name if "@" in name or (version and not name) else None)
    if len(last) < len(resource):
        assert len(json.loads(ours.pop("otlp.duplicate_attributes"))) == len(resource) - len(last)
    assert ours == {}


@of_many(examples=6)
@given(sent=st.lists(st.lists(d.spans(), max_size=3), min_size=1, max_size=4), split=st.integers(0, 4))
def test_the_rows_depend_on_the_records_alone_not_on_the_batch(sent: list[list[Span]], split: int) -> None:
    records = [(100 * i, 100 * i + 100, d.record(d.request(*spans))) for i, spans in enumerate(sent)]
    whole, _ = d.DECODER.decode(records)
    parts = [d.DECODER.decode(part)[0] for part in (records[:split], records[split:])]
    assert whole.schema.equals(schema.arrow_schema(schema.SPANS))

    def ordered(table: pa.Table) -> list[str]:
        return sorted(map(repr, table.to_pylist()))

    assert ordered(whole) == ordered(pa.concat_tables(parts))
