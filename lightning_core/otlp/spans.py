"""A span, and OTLP's bytes of it, written by hand: several times faster than protobuf's classes, and with the standard library alone.

Agents import this beside any framework and any protobuf. To whoever parses it, it is what protobuf's classes write; a
property test says so. Field numbers are those of opentelemetry/proto/trace/v1/trace.proto and common.proto, which cannot
change.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

PROTOBUF = "application/x-protobuf"
STATUS_UNSET, STATUS_OK, STATUS_ERROR = "unset", "ok", "error"
KIND_INTERNAL, KIND_CLIENT = 1, 3
SCOPE = "lightning-flows"
_INT64 = 1 << 63
_STATUS = {STATUS_UNSET: b"", STATUS_OK: b"\x18\x01", STATUS_ERROR: b"\x18\x02"}
_TIME = struct.Struct("<cQ")
_TIMES = struct.Struct("<cQcQ")
_DOUBLE = struct.Struct("<cd")


@dataclass(slots=True)
class SpanData:
    """One span. Ids are lower-case hex (32 and 16 digits), times are ns since the epoch."""

    name: str
    start_ns: int
    end_ns: int
    trace_id: str
    span_id: str
    parent_id: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    status: str = STATUS_UNSET
    status_message: str = ""
    events: Sequence[tuple[int, str, Mapping[str, Any]]] = ()  # ns, name, attributes
    kind: int = KIND_INTERNAL


def new_trace_id() -> str:
    """Return 32 hex digits from the operating system: an agent that seeds `random` still gets ids of its own."""
    return os.urandom(16).hex()


def new_span_id() -> str:
    """Return 16 hex digits from the operating system."""
    return os.urandom(8).hex()


def plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as OTLP knows them.

    `None` is left out, a mapping becomes JSON text, anything unknown its `str`.
    """
    return {str(key): _plain(value) for key, value in attributes.items() if value is not None}


def encode_request(resource: Mapping[str, Any], spans: Iterable[SpanData], scope: str = SCOPE) -> bytes:
    """Return the body of an export request (`ExportTraceServiceRequest`) of one resource."""
    parts = [_field(b"\x0a", _field(b"\x0a", _utf8(scope)))]
    parts += [_field(b"\x12", _span(span)) for span in spans]
    described = _attributes(b"\x0a", resource)
    return _field(b"\x0a", _field(b"\x0a", described) + _field(b"\x12", b"".join(parts)))


def int32_bytes(ids: Iterable[int]) -> bytes:
    """Return token ids as an attribute: little-endian int32. Raises OverflowError where one does not fit."""
    return _little_endian(array("i", ids))


def float32_bytes(values: Iterable[float]) -> bytes:
    """Return logprobs as an attribute: little-endian float32."""
    return _little_endian(array("f", values))


def _little_endian(values: array[Any]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _plain(value: Any) -> Any:
    if isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value) if -_INT64 <= value < _INT64 else str(int(value))
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Mapping):
        try:
            return json.dumps(dict(value), ensure_ascii=False, default=str)
        except (TypeError, ValueError):  # keys that JSON does not know, a mapping that holds itself
            return str(value)
    if isinstance(value, Sequence):
        return [_plain(item) for item in value if item is not None]
    return str(value)


def _span(span: SpanData) -> bytes:
    parts = [_field(b"\x0a", bytes.fromhex(span.trace_id)), _field(b"\x12", bytes.fromhex(span.span_id))]
    if span.parent_id:
        parts.append(_field(b"\x22", bytes.fromhex(span.parent_id)))
    parts.append(_field(b"\x2a", _utf8(span.name)))
    if span.kind:
        parts.append(b"\x30" + _varint(span.kind))
    parts.append(_TIMES.pack(b"\x39", span.start_ns, b"\x41", span.end_ns))
    parts.append(_attributes(b"\x4a", span.attributes))
    for at_ns, name, attributes in span.events:
        event = _TIME.pack(b"\x09", at_ns) + _field(b"\x12", _utf8(name)) + _attributes(b"\x1a", attributes)
        parts.append(_field(b"\x5a", event))
    message = _field(b"\x12", _utf8(span.status_message)) if span.status_message else b""
    parts.append(_field(b"\x7a", message + _STATUS[span.status]))
    return b"".join(parts)


def _attributes(tag: bytes, attributes: Mapping[str, Any]) -> bytes:
    parts: list[bytes] = []
    for key, value in plain_attributes(attributes).items():
        pair = _key_value(key, value)
        parts += (tag, _size(pair), pair)
    return b"".join(parts)


def _key_value(key: str, value: Any) -> bytes:
    inner = _any_value(value)
    return b"".join((_key(key), _size(inner), inner))


@lru_cache(maxsize=256)
def _key(key: str) -> bytes:
    """Return the key's field, and the tag of the value's."""
    return _field(b"\x0a", _utf8(key)) + b"\x12"


def _any_value(value: Any) -> bytes:
    if isinstance(value, str):
        return _field(b"\x0a", _utf8(value))
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        return b"\x18" + _varint(value & 0xFFFFFFFFFFFFFFFF)
    if isinstance(value, float):
        return _DOUBLE.pack(b"\x21", value)
    if isinstance(value, bytes):
        return _field(b"\x3a", value)
    return _field(b"\x2a", b"".join(_field(b"\x0a", _any_value(item)) for item in value))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # a lone surrogate (half an emoji in a streamed reply) has no UTF-8 form


def _field(tag: bytes, data: bytes) -> bytes:
    """Return a length-delimited field."""
    return b"".join((tag, _size(data), data))


def _size(data: bytes) -> bytes:
    size = len(data)
    return _SIZES[size] if size < _LISTED else _varint(size)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


_LISTED = 4096
_SIZES = [_varint(size) for size in range(_LISTED)]
