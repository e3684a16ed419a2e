"""OTLP's messages as protobuf's own classes, from a shadow of its descriptors that takes nothing for granted.

Texts are bytes, so text that is no UTF-8 is read like any other. Resources, scopes, spans, events, links, arrays and maps
are bytes too: each is parsed by itself, so that a broken one loses no other, none is too deep, and none is parsed in vain.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from lightning_core.otlp.wire import BYTES, WireError, walk

_SHADOWED = {
    "ResourceSpans.resource", "ScopeSpans.scope", "ScopeSpans.spans", "Span.events", "Span.links",
    "AnyValue.array_value", "AnyValue.kvlist_value",
}  # fmt: skip
_MOST_FIELDS = 1 << 17  # of one message: one of two bytes becomes an object
MOST_PARTS = 1 << 18  # resources, scopes and spans of a request,
LEAST_BYTES = 24  # that these have on average: a span's two ids take 28
_FEW_PARTS = 256  # that may be empty
_TO_SCOPE_SPANS = (1, 2)  # fields
_LABELS = {"attributes": "an attribute", "value": "a value", "status": "the status"}
_UNCONVERTED = b"\x00"


class OtlpError(ValueError):
    """A request that is refused: `status` is 400 (not OTLP), 413 (too large) or 415 (unknown encoding)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def _shadow() -> dict[str, Any]:
    """Return OTLP's message classes by name."""
    pool = descriptor_pool.DescriptorPool()
    names: list[str] = []
    for module in (common_pb2, resource_pb2, trace_pb2, trace_service_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        for message in [*file.message_type, *(inner for outer in file.message_type for inner in outer.nested_type)]:
            for field in message.field:
                if field.type == field.TYPE_STRING or f"{message.name}.{field.name}" in _SHADOWED:
                    field.type = field.TYPE_BYTES
                    field.ClearField("type_name")
        pool.Add(file)
        names += [f"{file.package}.{message.name}" for message in file.message_type]
    numbers = descriptor_pb2.FileDescriptorProto(name="numbers.proto", package="lightning", syntax="proto3")
    message, kind = numbers.message_type.add(name="Numbers"), descriptor_pb2.FieldDescriptorProto
    message.field.add(name="integers", number=3, type=kind.TYPE_INT64, label=kind.LABEL_REPEATED)
    message.field.add(name="doubles", number=4, type=kind.TYPE_DOUBLE, label=kind.LABEL_REPEATED)
    elements = numbers.message_type.add(name="Elements")
    elements.field.add(name="values", number=1, type=kind.TYPE_BYTES, label=kind.LABEL_REPEATED)
    pool.Add(numbers)
    names += ["lightning.Numbers", "lightning.Elements"]
    found = [message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names]
    spans = next(one for one in found if one.DESCRIPTOR.name == "Span")
    return {one.DESCRIPTOR.name: one for one in [*found, spans.Event, spans.Link]}


_CLASSES = _shadow()
Envelope: Any = _CLASSES["ExportTraceServiceRequest"]
Resource: Any = _CLASSES["Resource"]
Scope: Any = _CLASSES["InstrumentationScope"]
Span: Any = _CLASSES["Span"]
Event: Any = _CLASSES["Event"]
Link: Any = _CLASSES["Link"]
ArrayValue: Any = _CLASSES["ArrayValue"]
KeyValueList: Any = _CLASSES["KeyValueList"]
# An ArrayValue as its elements, and elements one after another: those of one kind are then a list of numbers.
Elements: Any = _CLASSES["Elements"]
Numbers: Any = _CLASSES["Numbers"]


def parse(kind: Any, raw: bytes, most: int | None = None) -> Any:
    """Parse a message of this class.

    Raises WireError, with the reason, where it is broken or has too many fields for the memory.
    """
    most = most or _MOST_FIELDS
    if len(raw) > 2 * most and any(count == most for count, _ in enumerate(walk(raw, 0, len(raw)))):
        raise WireError(f"it has more than {most} fields")
    try:
        return kind.FromString(raw)
    except DecodeError:
        _explain(kind.DESCRIPTOR, raw)
        raise WireError("it cannot be read") from None


def _explain(message: Any, raw: bytes) -> None:
    """Raise WireError with what is wrong with a message, if it is found."""
    for number, wire, begin, end in walk(raw, 0, len(raw)):
        field = message.fields_by_number.get(number)
        if wire == BYTES and field is not None and field.message_type is not None:
            try:
                _explain(field.message_type, raw[begin:end])
            except WireError as error:
                raise WireError(f"{_LABELS.get(field.name, field.name)} is broken: {error}") from None


def parse_envelope(body: bytes) -> Any:
    """Return the Envelope of a protobuf body; raise OtlpError 400 where it has none."""
    try:
        envelope = Envelope.FromString(body)
    except DecodeError:
        raise OtlpError(400, "the body is no ExportTraceServiceRequest in protobuf") from None
    # A request may be empty. Bytes that hold no resource are some other message, of unknown fields only.
    if body and not envelope.resource_spans:
        raise OtlpError(400, "the body is no ExportTraceServiceRequest: it has no resource_spans")
    return envelope


def require_few_parts(body: bytes) -> None:
    """Raise OtlpError for a request of more fields down to its spans than are parsed.

    A field of two bytes becomes an object, and all of them do at once.
    """
    most = _most_parts(len(body))
    parts = _parts(body, 0, len(body), _TO_SCOPE_SPANS)
    try:
        if any(count == most for count, _ in enumerate(parts)):
            raise _too_many(most, len(body))
    except WireError:
        return  # parsing says what is wrong


def _most_parts(size: int) -> int:
    return min(MOST_PARTS, max(_FEW_PARTS, size // LEAST_BYTES))


def _too_many(most: int, size: int) -> OtlpError:
    if most == MOST_PARTS:
        return OtlpError(413, f"the body has more than {most} resources, scopes and spans; send smaller batches")
    return OtlpError(
        413,
        f"the body has more than {most} resources, scopes and spans in {size} bytes, less than {LEAST_BYTES} each; leave the empty ones out",
    )


def _parts(body: bytes, at: int, end: int, inner: tuple[int, ...]) -> Iterator[None]:
    for number, wire, start, stop in walk(body, at, end):
        yield None
        if inner and wire == BYTES and number == inner[0]:
            yield from _parts(body, start, stop, inner[1:])


def count_spans(envelope: Any, size: int | None = None) -> int:
    """Return how many spans a request has.

    Raises OtlpError where its parts are too many for its `size`: mostly empty ones, each of which costs what a span
    does.
    """
    most = sys.maxsize if size is None else _most_parts(size)
    spans, parts = 0, len(envelope.resource_spans)
    for resource in envelope.resource_spans if parts <= most else ():
        parts += len(resource.scope_spans)
        if parts > most:
            break
        for scope in resource.scope_spans:
            spans += len(scope.spans)
    if size is not None and parts + spans > most:
        raise _too_many(most, size)
    return spans


def unconverted(value: Any, reason: str) -> bytes:
    """Return what stands in a request for a JSON span (or resource, or scope) that has no protobuf form.

    No protobuf parser accepts it: it begins with field number 0.
    """
    return _UNCONVERTED + json.dumps({"reason": reason, "json": value}).encode()


def why_unconverted(part: bytes) -> tuple[str, Any] | None:
    """Return (reason, JSON value) of a part that `unconverted` made; None for any other."""
    if not part.startswith(_UNCONVERTED):
        return None
    try:
        found = json.loads(part[1:])
        return found["reason"], found["json"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
