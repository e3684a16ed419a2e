"""OTLP/HTTP bodies to validated protobuf bytes, and spans of our own to the same.

A request that is well-formed passes through unchanged; OTLP/JSON is converted, so that what lies behind knows one
encoding. Decoding into columns happens later, off the request path.
"""

from __future__ import annotations

import base64
import binascii
import json
import sys
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

PROTOBUF = "application/x-protobuf"
JSON = "application/json"

AttributeValue = str | bool | int | float | bytes | Sequence[Any]


class OtlpError(ValueError):
    """A request that is refused: `status` is 400 (not OTLP), 413 (too large) or 415 (unknown encoding)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def parse_request(body: bytes, content_type: str, content_encoding: str | None, max_bytes: int) -> bytes:
    """The protobuf encoding of an `ExportTraceServiceRequest`; `max_bytes` bounds the uncompressed body.

    Raises OtlpError: 400 for what is no OTLP, 413 for too large a body, 415 for another content type or encoding.
    """
    plain, request = decode_message(ExportTraceServiceRequest, body, content_type, content_encoding, max_bytes)
    first_bad: Span | None = None
    good = 0
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                if len(span.trace_id) == 16 and len(span.span_id) == 8:
                    good += 1
                elif first_bad is None:
                    first_bad = span
    # Some bad spans are for the decoder to count; nothing but bad ones is another kind of message.
    if first_bad is not None and not good:
        raise OtlpError(
            400,
            f"span {first_bad.name!r:.60}: trace_id has {len(first_bad.trace_id)} bytes and span_id "
            f"{len(first_bad.span_id)}; OTLP wants 16 and 8",
        )
    return plain if media_type(content_type) == PROTOBUF else request.SerializeToString()


def decode_message(
    kind: type[Any], body: bytes, content_type: str, content_encoding: str | None, max_bytes: int
) -> tuple[bytes, Any]:
    """(uncompressed body, message) of a request that is protobuf or OTLP/JSON; raises OtlpError."""
    media = media_type(content_type)
    if media not in (PROTOBUF, JSON):
        raise OtlpError(415, f"content type {content_type!r:.80} is not supported; send {PROTOBUF} or {JSON}")
    plain = uncompress(body, content_encoding, max_bytes)
    try:
        return plain, kind.FromString(plain) if media == PROTOBUF else _from_json(kind, plain)
    except DecodeError as error:
        raise OtlpError(400, f"the body is no {kind.DESCRIPTOR.full_name} in protobuf: {error}") from None


def uncompress(body: bytes, content_encoding: str | None, max_bytes: int) -> bytes:
    """Undo gzip or deflate without ever holding more than `max_bytes`; raises OtlpError."""
    encoding = (content_encoding or "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "deflate"):
        raise OtlpError(415, f"content encoding {encoding!r:.40} is not supported; send gzip, deflate or none")
    too_large = OtlpError(413, f"the body exceeds {max_bytes} bytes; send smaller batches or raise server.max_body_mb")
    if len(body) > max_bytes:
        raise too_large
    if encoding in ("identity", ""):
        return body
    parts: list[bytes] = []
    room = max_bytes
    rest = body
    while rest:
        inflate = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
        try:
            part = inflate.decompress(rest, room + 1)
        except zlib.error as error:
            raise OtlpError(400, f"the body is not {encoding}: {error}") from None
        room -= len(part)
        if room < 0:
            raise too_large
        if not inflate.eof:
            raise OtlpError(400, f"the {encoding} body ends too early")
        parts.append(part)
        rest = inflate.unused_data  # gzip allows several members one after another
    return b"".join(parts)


_ID_KEYS = {"traceId": 16, "spanId": 8, "parentSpanId": 8, "trace_id": 16, "span_id": 8, "parent_span_id": 8}


def _from_json(kind: type[Any], plain: bytes) -> Message:
    try:
        raw = json.loads(plain)
        if not isinstance(raw, dict):
            raise OtlpError(400, f"OTLP/JSON begins with an object, not {type(raw).__name__}")
        _hex_ids(raw)
        # Receivers must ignore unknown fields (OTLP specification, JSON Protobuf Encoding).
        return json_format.ParseDict(raw, kind(), ignore_unknown_fields=True)
    except (ValueError, TypeError, RecursionError, json_format.Error) as error:
        if isinstance(error, OtlpError):
            raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise OtlpError(400, f"the body is no {kind.DESCRIPTOR.full_name} in OTLP/JSON: {reason:.300}") from None


def _hex_ids(raw: dict[str, Any]) -> None:
    """Ids are hex in OTLP/JSON, but protobuf's own JSON mapping expects base64: rewrite them in place."""
    for resource_spans in _objects(raw, "resourceSpans", "resource_spans"):
        for scope_spans in _objects(resource_spans, "scopeSpans", "scope_spans"):
            for span in _objects(scope_spans, "spans"):
                for holder in (span, *_objects(span, "links")):
                    for key in holder.keys() & _ID_KEYS.keys():
                        holder[key] = _base64_id(key, holder[key])


def _objects(holder: dict[str, Any], *keys: str) -> list[dict[str, Any]]:
    for key in keys:
        items = holder.get(key)
        if isinstance(items, list):
            return [item for item in items if isinstance(item, dict)]
    return []


def _base64_id(key: str, value: Any) -> str:
    if value is None or value == "":
        return ""
    try:
        return base64.b64encode(binascii.unhexlify(value)).decode()
    except (binascii.Error, TypeError, ValueError):
        raise OtlpError(400, f"{key} {value!r:.60} is not hexadecimal, as OTLP/JSON wants it") from None


@dataclass(frozen=True, slots=True)
class SpanData:
    """A span to be encoded; times are Unix nanoseconds."""

    name: str
    trace_id: bytes  # 16 bytes
    span_id: bytes  # 8 bytes
    start_ns: int
    end_ns: int
    parent_id: bytes | None = None
    kind: int = Span.SPAN_KIND_INTERNAL
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    status: Literal["unset", "ok", "error"] = "unset"
    status_message: str = ""


_STATUS = {"unset": Status.STATUS_CODE_UNSET, "ok": Status.STATUS_CODE_OK, "error": Status.STATUS_CODE_ERROR}


def encode_spans(
    resource: Mapping[str, AttributeValue], spans: Iterable[SpanData], scope: str = "lightning_core"
) -> bytes:
    """An `ExportTraceServiceRequest` of one resource; TypeError for an attribute value OTLP has no type for."""
    encoded = [
        Span(
            name=span.name,
            trace_id=span.trace_id,
            span_id=span.span_id,
            parent_span_id=span.parent_id or b"",
            kind=span.kind,  # type: ignore[arg-type]
            start_time_unix_nano=span.start_ns,
            end_time_unix_nano=span.end_ns,
            attributes=_key_values(span.attributes),
            status=Status(code=_STATUS[span.status], message=span.status_message),
        )
        for span in spans
    ]
    scope_spans = ScopeSpans(spans=encoded)
    scope_spans.scope.name = scope
    resource_spans = ResourceSpans(scope_spans=[scope_spans])
    resource_spans.resource.attributes.extend(_key_values(resource))
    return ExportTraceServiceRequest(resource_spans=[resource_spans]).SerializeToString()


def _key_values(attributes: Mapping[str, AttributeValue]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_any_value(key, value)) for key, value in attributes.items()]


def _any_value(key: str, value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, str):
        # A lone surrogate (half an emoji in a streamed reply) has no UTF-8 form.
        return AnyValue(string_value=value.encode("utf-8", "replace").decode())
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes | bytearray):
        return AnyValue(bytes_value=bytes(value))
    if isinstance(value, list | tuple):
        result = AnyValue()
        result.array_value.values.extend(_any_value(key, item) for item in value)
        if not value:
            result.array_value.SetInParent()
        return result
    raise TypeError(f"attribute {key!r}: OTLP has no type for {type(value).__name__}")


def int32_bytes(ids: Iterable[int]) -> bytes:
    """Little-endian int32; OverflowError where an id does not fit."""
    return _little_endian(array("i", ids))


def float32_bytes(values: Iterable[float]) -> bytes:
    """Little-endian float32."""
    return _little_endian(array("f", values))


def _little_endian(values: array[Any]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
