"""What comes in over OTLP becomes one protobuf encoding, or a refusal that says why."""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
import struct
import zlib
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from lightning_core.gateway.intake import _refused
from lightning_core.otlp.messages import OtlpError, parse_envelope, why_unconverted
from lightning_core.otlp.receive import JSON, TraceRequest, parse_request, sniff_encoding
from lightning_core.otlp.spans import PROTOBUF, SpanData, encode_request, float32_bytes, int32_bytes

MAX = 1 << 20
TRACE, SPAN, PARENT = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174", "eee19b7ec3c1b173"


def spans(**changes: Any) -> bytes:
    span = SpanData("work", 1, 2, TRACE, SPAN, **changes)
    return encode_request({"service.name": "s"}, [span])


def otlp_json(**span: Any) -> dict[str, Any]:
    base = {"traceId": TRACE, "spanId": SPAN, "name": "work", "kind": 3, "startTimeUnixNano": "1544712660000000000"}
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": [base | span]}]}]}


def parse_json(body: Any) -> Any:
    request = parse_request(json.dumps(body).encode(), "application/json; charset=utf-8", None, MAX)
    assert (request.spans, request.rejected) == (1, 0)
    return ExportTraceServiceRequest.FromString(request.body).resource_spans[0].scope_spans[0].spans[0]


def field(number: int, content: bytes) -> bytes:
    size, length = b"", len(content)
    while length >= 128:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def parts(body: bytes) -> list[bytes]:
    """The spans of a request as the bytes they are."""
    return [span for r in parse_envelope(body).resource_spans for s in r.scope_spans for span in s.spans]


def refusal(*arguments: Any) -> OtlpError:
    with pytest.raises(OtlpError) as caught:
        parse_request(*arguments)
    return caught.value


def test_protobuf_passes_through_byte_for_byte() -> None:
    assert parse_request(spans(), PROTOBUF, None, MAX) == TraceRequest(spans(), 1)
    assert parse_request(b"", PROTOBUF, None, MAX) == TraceRequest(b"", 0)


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)]
)
def test_compressed_bodies_are_undone(encoding: str, pack: Any) -> None:
    assert parse_request(pack(spans()), PROTOBUF, encoding, MAX).body == spans()


def test_gzip_of_several_members_is_one_body() -> None:
    body = spans()
    assert parse_request(gzip.compress(body[:9]) + gzip.compress(body[9:]), PROTOBUF, "gzip", MAX).body == body


def test_a_gzip_bomb_is_413_and_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(200_000_000), 1)
    assert refusal(bomb, PROTOBUF, "gzip", MAX).status == 413
    many = gzip.compress(bytes(600_000)) * 3
    assert refusal(many, PROTOBUF, "gzip", MAX).status == 413


def test_too_large_a_plain_body_is_413_that_names_the_setting() -> None:
    error = refusal(bytes(MAX + 1), PROTOBUF, None, MAX)
    assert error.status == 413 and "max_body_mb" in error.message


def test_too_large_a_request_of_another_signal_names_no_setting_that_cannot_help() -> None:
    with pytest.raises(OtlpError, match=r"exceeds 4194304 bytes; send smaller batches$") as caught:
        _refused("logs", bytes(5 << 20), PROTOBUF, None)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    "arguments",
    [
        (b"\xff\xff\xff", PROTOBUF, None),
        (b"{not json", JSON, None),
        (b"[]", JSON, None),
        (b"not gzip", PROTOBUF, "gzip"),
        (gzip.compress(spans(), mtime=0)[:-9], PROTOBUF, "gzip"),
        (b'{"a":' * 100_000, JSON, None),
        (b'{"resourceSpans": 5}', JSON, None),
        (b'{"resourceSpans": [5]}', JSON, None),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": {}}]}]}', JSON, None),
        (b'{"resourceMetrics": []}', JSON, None),
        (b"\x10\x01", PROTOBUF, None),  # protobuf, of some other message
        (b"any text at all", PROTOBUF, None),
        (b"\xff\xfe", JSON, None),
        (spans()[:-3], PROTOBUF, None),
    ],
)
def test_what_is_no_otlp_is_400(arguments: tuple[bytes, str, str | None]) -> None:
    assert refusal(*arguments, MAX).status == 400


@pytest.mark.parametrize(
    "span",
    [
        b"",
        b"\xff\xff\xff",
        b"\x0a",
        b"\x2a\x04\xff\xfe\xfd\xfc",
        Span(trace_id=b"short", span_id=b"x").SerializeToString(),
    ],
)
def test_a_broken_span_does_not_lose_the_request(span: bytes) -> None:
    envelope = parse_envelope(spans())
    envelope.resource_spans[0].scope_spans[0].spans.append(span)
    body = envelope.SerializeToString()
    assert parse_request(body, PROTOBUF, None, MAX) == TraceRequest(body, 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"traceId": "xyz"}, "traceId 'xyz' is not hexadecimal"),
        ({"traceId": 7}, "traceId 7 is not hexadecimal"),
        ({"links": [{"spanId": "g"}]}, "spanId 'g' is not hexadecimal"),
        ({"startTimeUnixNano": "late"}, "startTimeUnixNano"),
        ({"attributes": {"a": 1}}, "attributes"),
    ],
)
def test_a_json_span_without_a_protobuf_form_is_carried_with_its_reason(changes: Any, reason: str) -> None:
    both = otlp_json()
    bad = both["resourceSpans"][0]["scopeSpans"][0]["spans"][0] | changes
    both["resourceSpans"][0]["scopeSpans"][0]["spans"].append(bad)
    request = parse_request(json.dumps(both).encode(), JSON, None, MAX)
    assert (request.spans, request.rejected) == (2, 1) and reason in request.reason
    good, kept = parts(request.body)
    assert Span.FromString(good).trace_id.hex() == TRACE
    assert why_unconverted(good) is None and why_unconverted(kept) == (request.reason, bad)
    with pytest.raises(DecodeError):
        Span.FromString(kept)


@pytest.mark.parametrize("bad", [None, 5, "span", [], [[]]])
def test_what_is_no_span_at_all_in_json_is_carried_too(bad: Any) -> None:
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [bad]}]}]}
    request = parse_request(json.dumps(body).encode(), JSON, None, MAX)
    assert request.rejected == 1 and why_unconverted(parts(request.body)[0]) == (request.reason, bad)


def test_a_json_resource_that_cannot_be_converted_does_not_lose_its_spans() -> None:
    body = otlp_json()
    body["resourceSpans"][0]["resource"] = {"attributes": 5}
    request = parse_request(json.dumps(body).encode(), JSON, None, MAX)
    assert (request.spans, request.rejected) == (1, 0)
    found = why_unconverted(parse_envelope(request.body).resource_spans[0].resource)
    assert found is not None and found[1] == {"attributes": 5}


def test_json_text_that_is_no_text_becomes_replacement_characters() -> None:
    body = json.dumps(otlp_json(name="half \ud83d")).encode()
    request = parse_request(body, JSON, None, MAX)
    assert request.rejected == 0 and Span.FromString(parts(request.body)[0]).name == "half ?"
    body = json.dumps(otlp_json(name="NAME")).encode().replace(b"NAME", b"caf\xe9")
    assert Span.FromString(parts(parse_request(body, JSON, None, MAX).body)[0]).name == "caf\ufffd"


def test_a_body_of_countless_gzip_members_is_refused_at_once() -> None:
    members = gzip.compress(b"") * 100_000
    assert refusal(members, PROTOBUF, "gzip", 1 << 24).status == 400


@pytest.mark.parametrize("members", [1, 2, 300])
def test_what_is_inflated_in_pieces_is_whole(members: int) -> None:
    body = spans(attributes={"noise": os.urandom(600_000)})
    size = len(body) // members + 1
    packed = b"".join(gzip.compress(body[at : at + size]) for at in range(0, len(body), size))
    assert parse_request(packed, PROTOBUF, "gzip", MAX).body == body


def test_compression_is_told_by_its_first_bytes() -> None:
    assert sniff_encoding(gzip.compress(spans())) == "gzip"
    for level in range(10):
        assert sniff_encoding(zlib.compress(spans(), level)) == "deflate"
    assert sniff_encoding(spans()) is sniff_encoding(b"") is None


def test_other_types_and_encodings_are_415() -> None:
    assert refusal(b"", "text/plain", None, MAX).status == 415
    assert refusal(b"", "", None, MAX).status == 415
    assert refusal(b"", PROTOBUF, "br", MAX).status == 415


def test_json_ids_are_hex_and_numbers_may_be_text() -> None:
    span = parse_json(otlp_json(parentSpanId=PARENT.upper(), links=[{"traceId": TRACE, "spanId": SPAN}]))
    assert (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN, PARENT)
    assert span.links[0].trace_id.hex() == TRACE
    assert span.start_time_unix_nano == 1544712660000000000


@pytest.mark.parametrize("kind", [3, "SPAN_KIND_CLIENT"])
def test_json_enums_may_be_numbers_or_names(kind: Any) -> None:
    assert parse_json(otlp_json(kind=kind)).kind == 3


def test_json_values_of_every_type_arrive() -> None:
    values: list[Any] = [
        {"stringValue": "é"},
        {"boolValue": True},
        {"intValue": "9007199254740993"},
        {"doubleValue": 0.5},
        {"bytesValue": base64.b64encode(b"\x01\x02").decode()},
        {"arrayValue": {"values": [{"intValue": 1}]}},
        {"kvlistValue": {"values": [{"key": "k", "value": {"stringValue": "v"}}]}},
    ]
    span = parse_json(otlp_json(attributes=[{"key": str(i), "value": v} for i, v in enumerate(values)], unknownField=1))
    got = [a.value for a in span.attributes]
    assert (got[0].string_value, got[1].bool_value, got[2].int_value) == ("é", True, 9007199254740993)
    assert (got[3].double_value, got[4].bytes_value) == (0.5, b"\x01\x02")
    assert got[5].array_value.values[0].int_value == 1 and got[6].kvlist_value.values[0].key == "k"


@pytest.mark.parametrize(
    "number", [2**63, "9223372036854775808", 18446744073709551616.0, -(10**22), "123456789012345678901234"]
)
def test_a_whole_number_beyond_64_bits_is_a_double(number: Any) -> None:
    """JavaScript's exporters write 2^63 and more as intValue: a number without a fraction is an integer to them."""
    inner = {"kvlistValue": {"values": [{"key": "k", "value": {"arrayValue": {"values": [{"intValue": number}]}}}]}}
    event = {"name": "e", "attributes": [{"key": "deep", "value": inner}]}
    span = parse_json(otlp_json(attributes=[{"key": "n", "value": {"intValue": number}}], events=[event]))
    assert span.attributes[0].value.double_value == float(number)
    deep = span.events[0].attributes[0].value.kvlist_value.values[0].value.array_value.values[0]
    assert deep.double_value == float(number)


@pytest.mark.parametrize("number", ["1e400", "9" * 400, "ten", [1], {"a": 1}, 0.5, math.inf])
def test_what_is_no_whole_number_is_set_aside(number: Any) -> None:
    body = json.dumps(otlp_json(attributes=[{"key": "n", "value": {"intValue": number}}])).encode()
    assert parse_request(body, JSON, None, MAX).rejected == 1


@pytest.mark.parametrize(
    ("number", "became"),
    [("NaN", math.nan), ("Infinity", math.inf), ("-Infinity", -math.inf), ("1e400", math.inf), ("-1e400", -math.inf)],
)
def test_doubles_that_are_no_json_arrive(number: str, became: float) -> None:
    inner = {"arrayValue": {"values": [{"doubleValue": "NUMBER"}]}}
    body = json.dumps(
        otlp_json(attributes=[{"key": "n", "value": {"doubleValue": "NUMBER"}}, {"key": "m", "value": inner}])
    )
    request = parse_request(body.replace('"NUMBER"', number).encode(), JSON, None, MAX)
    assert request.rejected == 0
    one, deep = Span.FromString(parts(request.body)[0]).attributes
    for got in (one.value.double_value, deep.value.array_value.values[0].double_value):
        assert got == became or (math.isnan(got) and math.isnan(became))


def test_json_names_that_this_otlp_does_not_have_are_kept_as_attributes() -> None:
    span = parse_json(otlp_json(kind="FOO", status={"code": "STATUS_CODE_BAR"}))
    assert (span.kind, span.status.code) == (0, 0)
    assert {a.key: a.value.string_value for a in span.attributes} == {
        "otlp.kind": "FOO",
        "otlp.status_code": "STATUS_CODE_BAR",
    }
    known = parse_json(otlp_json(kind="SPAN_KIND_UNSPECIFIED", status={"code": "0"}))
    assert not known.attributes and parse_json(otlp_json(kind="99")).kind == 99


def test_an_empty_parent_id_means_a_root() -> None:
    assert parse_json(otlp_json(parentSpanId="")).parent_span_id == b""
    assert parse_json(otlp_json(parentSpanId=None)).parent_span_id == b""


def test_built_spans_hold_every_type_of_value() -> None:
    attributes: dict[str, Any] = {"s": "x", "b": True, "i": -1, "f": 0.5, "y": b"\x00", "l": ["a", 1], "e": []}
    body = spans(attributes=attributes, status="error", status_message="why", parent_id=PARENT, kind=3)
    request = ExportTraceServiceRequest.FromString(body)
    assert request.resource_spans[0].resource.attributes[0].value.string_value == "s"
    span = request.resource_spans[0].scope_spans[0].spans[0]
    got = {a.key: a.value for a in span.attributes}
    assert got["b"].WhichOneof("value") == "bool_value" and got["i"].int_value == -1
    assert got["y"].bytes_value == b"\x00" and got["l"].array_value.values[1].int_value == 1
    assert got["e"].WhichOneof("value") == "array_value"
    assert (span.status.code, span.status.message, span.parent_span_id.hex()) == (2, "why", PARENT)


def test_half_an_emoji_does_not_lose_the_span() -> None:
    assert b"?" in spans(attributes={"text": "\ud83d"})


def test_arrays_of_numbers_are_little_endian() -> None:
    assert int32_bytes([1, -2, 70_000]) == struct.pack("<3i", 1, -2, 70_000)
    assert float32_bytes([-0.5, -math.inf]) == struct.pack("<2f", -0.5, -math.inf)
    with pytest.raises(OverflowError):
        int32_bytes([1 << 31])


@pytest.mark.parametrize("shape", ["resources", "scopes", "spans"])
@pytest.mark.parametrize("times", [1_000, 400_000])
def test_a_request_of_little_but_empty_parts_is_refused_before_it_costs_what_spans_do(shape: str, times: int) -> None:
    sound = spans()
    empty = {
        "resources": b"\x0a\x00" * times,
        "scopes": field(1, b"\x12\x00" * times),
        "spans": field(1, field(2, b"\x12\x00" * times)),
    }
    with pytest.raises(OtlpError, match="resources, scopes and spans") as refused:
        parse_request(sound + empty[shape], PROTOBUF, None, MAX * 100)
    assert refused.value.status == 413
    few = {
        "resources": b"\x0a\x00" * 200,
        "scopes": field(1, b"\x12\x00" * 200),
        "spans": field(1, field(2, b"\x12\x00" * 200)),
    }
    assert parse_request(sound + few[shape], PROTOBUF, None, MAX).spans == 1 + 200 * (shape == "spans")
