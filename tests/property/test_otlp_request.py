"""Whatever bytes come, a request is stored or refused with a reason; a broken span never loses its neighbours."""

from __future__ import annotations

import gzip
import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from lightning_core.otlp.messages import Envelope, OtlpError, parse_envelope, why_unconverted
from lightning_core.otlp.receive import JSON, parse_request, sniff_encoding
from lightning_core.otlp.spans import PROTOBUF, SpanData, encode_request
from tests.examples import of_many

MAX = 1 << 16
GOOD = encode_request({"service.name": "s"}, [SpanData("work", 1, 2, "74" * 16, "73" * 8, attributes={"a": "b" * 40})])
GOOD_JSON = json.dumps(
    {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "s"}}]},
                "scopeSpans": [{"scope": {"name": "x"}, "spans": [{"traceId": "ab" * 16, "spanId": "cd" * 8}]}],
            }
        ]
    }
).encode()

keys = st.sampled_from(
    [
        "resourceSpans",
        "resource_spans",
        "resource",
        "attributes",
        "key",
        "value",
        "stringValue",
        "intValue",
        "arrayValue",
        "values",
        "kvlistValue",
        "scopeSpans",
        "scope",
        "spans",
        "traceId",
        "spanId",
        "parentSpanId",
        "name",
        "kind",
        "startTimeUnixNano",
        "events",
        "links",
        "status",
        "code",
        "flags",
    ]
) | st.text(max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """A good body with a few of its bytes replaced, removed or added."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


def stored(body: bytes, media: str, encoding: str | None) -> None:
    """The request is refused with a status of its own, or comes back as a sound envelope of as many spans."""
    try:
        request = parse_request(body, media, encoding, MAX)
    except OtlpError as error:
        assert error.status in (400, 413, 415) and error.message
        return
    envelope = parse_envelope(request.body)
    assert sum(len(s.spans) for r in envelope.resource_spans for s in r.scope_spans) == request.spans
    assert bool(request.body) == bool(request.spans)


@of_many(examples=80)
@given(
    body=st.binary(max_size=200) | mutated(GOOD) | mutated(GOOD_JSON) | mutated(gzip.compress(GOOD)),
    media=st.sampled_from([PROTOBUF, JSON, "application/json; charset=utf-8", "text/plain", ""]),
    encoding=st.sampled_from([None, "", "identity", "gzip", "deflate", "br"]),
)
@example(body=GOOD, media=PROTOBUF, encoding=None)
@example(body=b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"links":[5]}]}]}]}', media=JSON, encoding=None)
def test_no_bytes_raise_anything_but_a_refusal(body: bytes, media: str, encoding: str | None) -> None:
    stored(body, media, encoding)
    stored(body, PROTOBUF, sniff_encoding(body))


@of_many(examples=50)
@given(value=st.dictionaries(keys, json_values, max_size=4))
def test_no_json_raises_anything_but_a_refusal(value: Any) -> None:
    stored(json.dumps(value).encode(), JSON, None)


@of_many(examples=50)
@given(span=json_values | st.dictionaries(keys, json_values, max_size=6))
def test_a_json_span_of_any_shape_leaves_its_neighbour_whole(span: Any) -> None:
    raw = json.loads(GOOD_JSON)
    raw["resourceSpans"][0]["scopeSpans"][0]["spans"].append(span)
    request = parse_request(json.dumps(raw).encode(), JSON, None, MAX)
    good, other = parse_envelope(request.body).resource_spans[0].scope_spans[0].spans
    assert Span.FromString(good).trace_id == b"\xab" * 16
    assert request.spans == 2 and request.rejected == (why_unconverted(other) is not None)
    if not request.rejected:
        Span.FromString(other)


@of_many(examples=60)
@given(
    spans=st.lists(
        st.binary(max_size=60) | mutated(Span(name="x", trace_id=b"t" * 16).SerializeToString()), max_size=5
    ),
    resource=st.binary(max_size=20),
    scope=st.binary(max_size=20),
)
def test_spans_of_any_bytes_are_taken_while_the_envelope_is_whole(
    spans: list[bytes], resource: bytes, scope: bytes
) -> None:
    envelope = Envelope()
    inner = envelope.resource_spans.add(resource=resource).scope_spans.add(scope=scope)
    inner.spans.extend([b"first", *spans])
    body = envelope.SerializeToString()
    request = parse_request(body, PROTOBUF, None, MAX)
    assert (request.body, request.spans) == (body, len(spans) + 1)
