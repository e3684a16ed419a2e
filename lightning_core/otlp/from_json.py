"""OTLP/JSON to the protobuf envelope, span by span.

OTLP/JSON is not protobuf's JSON mapping: ids are hex, and unknown fields must be ignored. One part that cannot be
converted (a trace id that is no hex, a time that is no number) does not lose the others: it goes into the envelope as
what it is, with the reason, and the decoder sets it aside. Text that is no UTF-8, and half of a surrogate pair, become
replacement characters.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from typing import Any

import orjson
from google.protobuf import json_format
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from lightning_core.otlp.json_values import MOST_VALUES, has_too_many_values
from lightning_core.otlp.messages import Envelope, OtlpError, unconverted

_MOST_SPANS = 100_000  # of a request: they are converted one by one, in seconds for so many
_INTEGER = re.compile(r"[+-]?[0-9]{1,400}")
_ID_KEYS = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})


def read_json(plain: bytes) -> dict[str, Any]:
    """Return the object that the body is; raise OtlpError 400 where it is none, 413 where it has too many values."""
    if has_too_many_values(plain):
        raise OtlpError(413, f"the body has more than {MOST_VALUES} texts, lists and objects; send smaller batches")
    try:
        raw = orjson.loads(plain)
    except orjson.JSONDecodeError:
        raw = _read_leniently(plain)
    if not isinstance(raw, dict):
        raise OtlpError(400, f"OTLP/JSON begins with an object, not {type(raw).__name__}")
    return raw


def _read_leniently(plain: bytes) -> Any:
    """Read what orjson refuses and an exporter may send all the same: NaN, invalid UTF-8, half a surrogate pair."""
    try:
        return json.loads(plain.decode("utf-8-sig", "replace"))
    except RecursionError:
        raise OtlpError(400, "the body is no OTLP/JSON: it is nested too deeply") from None
    except ValueError as error:
        raise OtlpError(400, f"the body is no OTLP/JSON: {error}") from None


def trace_envelope(raw: dict[str, Any]) -> tuple[Any, list[str]]:
    """Return (Envelope, the reason of each span that could not be converted) of an OTLP/JSON trace request.

    Raises OtlpError 400 where the lists that hold the spans are none, 413 for too many spans.
    """
    envelope = Envelope()
    reasons: list[str] = []
    left = _MOST_SPANS
    resources = objects(raw, "resourceSpans", "resource_spans")
    if raw and not resources and not raw.keys() & {"resourceSpans", "resource_spans"}:
        raise OtlpError(400, "the body is no ExportTraceServiceRequest in OTLP/JSON: it has no resourceSpans")
    for resource_spans in resources:
        out = envelope.resource_spans.add(schema_url=_schema_url(resource_spans))
        if resource := resource_spans.get("resource"):
            out.resource = _part(Resource, resource)[0]
        for scope_spans in objects(resource_spans, "scopeSpans", "scope_spans"):
            group = out.scope_spans.add(schema_url=_schema_url(scope_spans))
            if scope := scope_spans.get("scope"):
                group.scope = _part(InstrumentationScope, scope)[0]
            spans = _items(scope_spans, "spans")
            left -= len(spans)
            if left < 0:
                raise OtlpError(413, f"the body has more than {_MOST_SPANS} spans; send smaller batches, or protobuf")
            for span in spans:
                encoded, reason = _part(Span, span)
                group.spans.append(encoded)
                if reason is not None:
                    reasons.append(reason)
    return envelope, reasons


def objects(holder: dict[str, Any], *keys: str) -> list[dict[str, Any]]:
    """Return the list of objects under the first of these keys that is there; OtlpError 400 for anything else there."""
    items = _items(holder, *keys)
    for item in items:
        if not isinstance(item, dict):
            raise OtlpError(400, f"the body is no OTLP/JSON: `{keys[0]}` holds {type(item).__name__}, not objects")
    return items


def _items(holder: dict[str, Any], *keys: str) -> list[Any]:
    for key in keys:
        items = holder.get(key)
        if items is None:
            continue
        if not isinstance(items, list):
            raise OtlpError(400, f"the body is no OTLP/JSON: `{key}` is {type(items).__name__}, not a list")
        return items
    return []


def _schema_url(holder: dict[str, Any]) -> bytes:
    url = holder.get("schemaUrl", holder.get("schema_url"))
    return url.encode("utf-8", "replace") if isinstance(url, str) else b""


def _part(kind: type[Any], value: Any) -> tuple[bytes, str | None]:
    """Return (protobuf bytes, None) of a part of the request, or its stand-in and the reason."""
    try:
        return _convert(kind, value), None
    except Exception as first:  # noqa: BLE001 - json_format raises whatever its input leads to, and the rest goes on
        try:
            return _convert(kind, _whole_text(_numbers(value))), None
        except Exception:  # noqa: BLE001
            problem = f"{str(first) or type(first).__name__:.300}".encode("utf-8", "replace").decode()
            reason = f"{kind.DESCRIPTOR.name} in OTLP/JSON: {problem}"
            return unconverted(value, reason), reason


def _convert(kind: type[Any], value: Any) -> bytes:
    if not isinstance(value, dict):
        raise ValueError(f"an object is wanted, not {type(value).__name__}")
    if kind is Span:
        value = _hex_ids(value)
        links = value.get("links")
        if isinstance(links, list):
            value["links"] = [_hex_ids(link) if isinstance(link, dict) else link for link in links]
    message = json_format.ParseDict(value, kind(), ignore_unknown_fields=True)
    if kind is Span:
        _keep_unknown_name(message, "otlp.kind", value.get("kind"), message.kind, Span.SpanKind)
        status = value.get("status")
        code = status.get("code") if isinstance(status, dict) else None
        _keep_unknown_name(message, "otlp.status_code", code, message.status.code, Status.StatusCode)
    encoded: bytes = message.SerializeToString()
    return encoded


def _keep_unknown_name(span: Any, key: str, sent: Any, became: int, enum: Any) -> None:
    """Keep a name that this OTLP does not have in an attribute: protobuf's mapping counts it as none."""
    if isinstance(sent, str) and became == 0 and sent.strip() != "0" and sent not in enum.keys():  # noqa: SIM118
        span.attributes.add(key=key).value.string_value = sent


def _numbers(value: Any) -> Any:
    """Return a copy with numbers as protobuf takes them.

    An `intValue` beyond 64 bits is a double: so JavaScript's exporters write a large number. A double that is no finite
    number is in quotes: so protobuf wants NaN, Infinity, and 1e400 which is infinite.
    """
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _numbers(item) for key, item in value.items()}
    for key in ("intValue", "int_value"):
        if key in copy and (number := _beyond_int64(copy[key])) is not None:
            del copy[key]
            copy["doubleValue"] = number
    for key in ("doubleValue", "double_value"):
        if isinstance(number := copy.get(key), float) and not math.isfinite(number):
            copy[key] = "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return copy


def _beyond_int64(value: Any) -> float | None:
    """Return an integer that int64 cannot hold, and a double can, as a double; None for another value."""
    try:
        number = float(value) if isinstance(value, int | float) or _INTEGER.fullmatch(value) else 0.0
    except (OverflowError, TypeError):
        return None
    return number if math.isfinite(number) and not -(2.0**63) <= number < 2.0**63 else None


def _whole_text(value: Any) -> Any:
    """Return the same value with half surrogate pairs replaced: they have no UTF-8 form."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def _hex_ids(holder: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with ids in base64, which is what protobuf's own JSON mapping expects."""
    return {key: _base64_id(key, value) if key in _ID_KEYS else value for key, value in holder.items()}


def _base64_id(key: str, value: Any) -> str:
    if value is None or value == "":
        return ""
    try:
        return base64.b64encode(binascii.unhexlify(value)).decode()
    except (binascii.Error, TypeError, ValueError):
        raise ValueError(f"{key} {value!r:.60} is not hexadecimal") from None
