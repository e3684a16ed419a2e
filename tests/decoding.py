"""Random OTLP requests, and what the decoder has to make of them, written down a second time: slowly, span by span."""

from __future__ import annotations

import json
import math
from array import array
from typing import Any

from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from lightning_core.lake import schema
from lightning_core.lake.decode import Decoder, _decode, aliases, whole
from lightning_core.spool.spool import Record

DECODER = Decoder()


def record(body: bytes, rollout: str | None = "r.1", attempt: str | None = "a1") -> Record:
    return Record(rollout, attempt, "path" if rollout else "none", 5, "otlp", body)


def decode(*bodies: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `spans` in the order they were sent, and what was rejected."""
    table, rejected = DECODER.decode([(100 * i, 100 * i + 100, record(body)) for i, body in enumerate(bodies)])
    assert table.schema.equals(schema.arrow_schema(schema.SPANS))
    rows = table.to_pylist(maps_as_pydicts="strict")
    return sorted(rows, key=lambda row: (row["record_offset"], row["record_index"])), rejected


def read(*bodies: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `decoded_spans`, what SQL concludes of them left out, and what was rejected. Several times as fast."""
    table, rejected = _decode([(100 * i, record(body)) for i, body in enumerate(bodies)])
    return whole(table).to_pylist(maps_as_pydicts="strict"), rejected


def request(*spans: Span, resource: dict[str, str] | None = None) -> bytes:
    made = ExportTraceServiceRequest()
    resource_spans = made.resource_spans.add()
    for key, value in (resource or {}).items():
        resource_spans.resource.attributes.add(key=key).value.string_value = value
    resource_spans.scope_spans.add().spans.extend(spans)
    return made.SerializeToString()


def good(number: int = 1, **fields: Any) -> Span:
    values = {"trace_id": b"\x01" * 16, "span_id": number.to_bytes(8, "big"), "name": "step"}
    return Span(**(values | {"start_time_unix_nano": 1000, "end_time_unix_nano": 2000} | fields))


def value(plain: Any) -> AnyValue:
    """A plain value as AnyValue; a dict is a kvlist, None an empty value."""
    if isinstance(plain, list):
        return AnyValue(array_value=ArrayValue(values=[value(item) for item in plain]))
    if isinstance(plain, dict):
        return AnyValue(kvlist_value=KeyValueList(values=[pair(k, v) for k, v in plain.items()]))
    kinds = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value", bytes: "bytes_value"}
    return AnyValue() if plain is None else AnyValue(**{kinds[type(plain)]: plain})


def pair(key: str, plain: Any) -> KeyValue:
    return KeyValue(key=key, value=value(plain))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
int64s = st.integers(-(2**63), 2**63 - 1)
scalars = st.one_of(st.none(), texts, st.booleans(), int64s, st.floats(width=64), st.binary(max_size=20))
ids = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=30)
singles = st.lists(st.floats(width=32), max_size=30)
numbers = st.one_of(
    ids,
    singles,
    st.lists(st.one_of(st.integers(-5, 2**40), st.floats(width=32)), max_size=6),
    ids.map(json.dumps),
    ids.map(lambda i: array("i", i).tobytes()),
    singles.map(lambda f: array("f", f).tobytes()),
    st.sampled_from(
        ["[1.5, -2]", "[1, null]", "[]", "[", "12", " 7 ", "1e3", "-inf", "nan", "12.0", "0x1", "1_000", "٣"]
    ),
)
nested = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)
keys = st.one_of(
    texts,
    st.sampled_from(sorted(aliases())),
    st.sampled_from(
        ["'; DROP TABLE spans; --", 'a"b', "", "attributes", "otlp.duplicate_attributes", "otlp.invalid_utf8"]
    ),
)
attributes = st.lists(st.builds(pair, keys, st.one_of(nested, numbers)), max_size=10)
uint32s = st.integers(0, 2**32 - 1)
uint64s = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63 - 1, 2**63, 4_102_444_800_000_000_000]))
events = st.builds(
    Span.Event, time_unix_nano=uint64s, name=texts, attributes=attributes, dropped_attributes_count=uint32s
)
links = st.builds(
    Span.Link, trace_id=st.binary(max_size=20), span_id=st.binary(max_size=9), trace_state=texts, flags=uint32s,
    attributes=attributes, dropped_attributes_count=uint32s,
)  # fmt: skip


@st.composite
def spans(draw: Any) -> Span:
    """Any span with ids."""
    span = Span(
        trace_id=draw(st.binary(min_size=16, max_size=16).filter(any)),
        span_id=draw(st.binary(min_size=8, max_size=8).filter(any)),
        parent_span_id=draw(st.one_of(st.just(b""), st.just(bytes(8)), st.binary(max_size=20))),
        name=draw(texts), trace_state=draw(texts), kind=draw(st.one_of(st.integers(0, 5), st.integers(-(2**31), 2**31 - 1))),
        start_time_unix_nano=draw(uint64s), end_time_unix_nano=draw(uint64s), attributes=draw(attributes),
        events=draw(st.lists(events, max_size=2)), links=draw(st.lists(links, max_size=2)), flags=draw(uint32s),
        dropped_attributes_count=draw(uint32s), dropped_events_count=draw(uint32s), dropped_links_count=draw(uint32s),
    )  # fmt: skip
    if draw(st.booleans()):
        span.status.code = draw(st.one_of(st.integers(0, 2), st.integers(-(2**31), 2**31 - 1)))
        span.status.message = draw(texts)
    return span


def plain(sent: AnyValue) -> Any:
    """What an AnyValue is in JSON."""
    which = sent.WhichOneof("value")
    if which == "array_value":
        return [plain(item) for item in sent.array_value.values]
    if which == "kvlist_value":
        return as_object([(item.key, plain(item.value)) for item in sent.kvlist_value.values])
    if which == "bytes_value":
        return sent.bytes_value.hex()
    found: Any = getattr(sent, which) if which else None
    return str(found) if which == "double_value" and not math.isfinite(found) else found


def as_object(items: list[tuple[str, Any]]) -> Any:
    return dict(items) if len(dict(items)) == len(items) else [{"key": k, "value": v} for k, v in items]


def same_text(text: str | None, sent: AnyValue) -> bool:
    """Whether `text` is what an attribute's value has to be in the lake."""
    expected = plain(sent)
    if expected is None or isinstance(expected, str):
        return text == expected
    return text is not None and repr(json.loads(text)) == repr(expected)


def readable(sent: AnyValue, kind: str) -> Any:
    """The value as a column of this kind; None where it cannot be read as one."""
    which = sent.WhichOneof("value")
    found: Any = getattr(sent, which) if which else None
    if kind == "text":
        return None if found is None else (plain(sent) if isinstance(plain(sent), str) else sent)
    if kind in ("int", "float"):
        if which == "string_value":
            found = (
                _number(found.strip(" \t\n\r\f\v"), kind)
                if not set(found) - set("0123456789+-.eE \t\n\r\f\vnaifty NAIFTY")
                else None
            )
        elif which not in ("int_value", "double_value", "bool_value"):
            found = None
        if found is None or kind == "float":
            return None if found is None else float(found)
        return int(found) if math.isfinite(found) and int(found) == found and -(2**63) <= found < 2**63 else None
    code, size = ("i", 4) if kind == "int32s" else ("f", 4)
    if which == "bytes_value":
        return None if len(found) % size else array(code, found).tolist()
    if which == "array_value":
        items = [plain(item) if item.WhichOneof("value") != "bool_value" else None for item in found.values]
    elif which == "string_value":
        try:
            items = json.loads(found)
        except ValueError:
            return None
    else:
        return None
    if not isinstance(items, list) or any(
        type(item) not in ((int,) if code == "i" else (int, float, str)) for item in items
    ):
        return None
    if any(type(item) is str and item not in ("nan", "inf", "-inf") for item in items):
        return None
    try:
        found = array(code, map(float, items) if code == "f" else items).tolist()
    except OverflowError:
        return None
    return None if any(math.isinf(a) != math.isinf(float(b)) for a, b in zip(found, items, strict=True)) else found


def _number(text: str, kind: str) -> Any:
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        return None


def one(*attributes: KeyValue, **fields: Any) -> dict[str, Any]:
    """The row of a span that has good ones on both sides."""
    sent = good(2, **({"attributes": attributes} | fields))
    rows, rejected = read(request(good(1), sent, good(3)))
    assert rejected == [] and [row["record_index"] for row in rows] == [0, 1, 2]
    return rows[1]
