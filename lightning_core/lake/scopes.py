"""Resources and instrumentation scopes: where spans come from. A few a request, so read one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
import xxhash

from lightning_core.lake.any_value import Broken, key_value, text, texts
from lightning_core.lake.wire import BYTES, VARINT, WireError, walk

SHORT, _SHORT_ATTRIBUTE = 512, 256  # characters that `shortened` leaves of a resource, and of an attribute


@dataclass(frozen=True)
class Scope:
    """Where spans come from: the resource's attributes and the instrumentation scope."""

    resource: list[tuple[str, str | None]]
    instrumentation: str | None
    seed: int  # of the content hashes of its spans


def read_scope(resource: bytes, resource_schema: bytes, scope: bytes, scope_schema: bytes) -> Scope:
    """A resource and a scope with the schema URLs of both. What has no place of its own is under `otlp.*`."""
    broken = Broken()
    sent, extra = _attributes_of(resource, 1, 2, broken, "resource")
    of_scope, scope_extra = _attributes_of(scope, 3, 4, broken, "scope")
    extra |= scope_extra
    name, version = _strings_of(scope, broken) if "otlp.scope.unreadable" not in extra else ("", "")
    if "@" in name or (version and not name):
        extra["otlp.scope.name"] = name
    if of_scope:
        extra["otlp.scope.attributes"] = orjson.dumps(texts(of_scope)).decode()
    for label, raw in (("resource", resource_schema), ("scope", scope_schema)):
        if raw:
            extra[f"otlp.{label}.schema_url"] = broken.decode(raw)
    pairs = dict(sent)
    if len(pairs) != len(sent):
        lost = [(key, value) for i, (key, value) in enumerate(sent) if key in {k for k, _ in sent[i + 1 :]}]
        extra["otlp.duplicate_attributes"] = duplicates(lost)
    if broken.texts:
        extra["otlp.invalid_utf8"] = orjson.dumps(broken.texts).decode()
    for key, value in extra.items():
        pairs[free_key(key, pairs)] = value
    instrumentation = f"{name}@{version}" if version else name or None
    return Scope(list(pairs.items()), instrumentation, xxhash.xxh3_64_intdigest(resource))


def size(scope: Scope) -> int:
    """Characters that each span of this scope has a copy of."""
    return sum(len(key) + len(value or "") for key, value in scope.resource)


def shortened(scope: Scope) -> Scope:
    """The scope with the short attributes of its resource only, and `otlp.resource.shortened`: how much is not there."""
    kept: list[tuple[str, str | None]] = []
    room = SHORT
    for key, value in scope.resource:
        needed = len(key) + len(value or "")
        if needed <= min(room, _SHORT_ATTRIBUTE):
            kept.append((key, value))
            room -= needed
    lost = {"attributes": len(scope.resource) - len(kept), "characters": size(scope) - (SHORT - room)}
    kept.append((free_key("otlp.resource.shortened", dict(kept)), orjson.dumps(lost).decode()))
    return Scope(kept, scope.instrumentation, scope.seed)


def free_key(key: str, taken: Any) -> str:
    """The key under which the decoder writes `key`: an attribute that was sent under that name keeps it."""
    while key in taken:
        key += "_"
    return key


def duplicates(lost: list[tuple[str, Any]]) -> str:
    """Attributes whose key comes again later, as JSON."""
    rows = [{"key": key, "value": None if (t := text(value)) is None else t.decode()} for key, value in lost]
    return orjson.dumps(rows).decode()


def _attributes_of(
    data: bytes, attributes: int, dropped: int, broken: Broken, label: str
) -> tuple[list[tuple[str, str | None]], dict[str, str]]:
    """(key and text of each attribute, what else there is)."""
    sent: list[tuple[str, str | None]] = []
    extra, references = {}, []
    try:
        for number, wire, begin, end, value in walk(data, 0, len(data)):
            if (number, wire) == (attributes, BYTES):
                key, plain = key_value(data, begin, end, broken)
                sent.append((key, None if (t := text(plain)) is None else t.decode()))
            elif (number, wire) == (dropped, VARINT) and value:
                extra[f"otlp.{label}.dropped_attributes_count"] = str(value & 0xFFFFFFFF)
            elif (number, wire, label) == (3, BYTES, "resource"):
                references.append(_entity_reference(data, begin, end, broken))
    except WireError:
        return [], {f"otlp.{label}.unreadable": data.hex()}
    if references:
        extra["otlp.resource.entity_refs"] = orjson.dumps(references).decode()
    return sent, extra


def _entity_reference(data: bytes, start: int, stop: int, broken: Broken) -> dict[str, Any]:
    reference: dict[str, Any] = {"schema_url": "", "type": "", "id_keys": [], "description_keys": []}
    for number, wire, begin, end, _ in walk(data, start, stop):
        if wire == BYTES and number in (1, 2):
            reference["schema_url" if number == 1 else "type"] = broken.decode(data[begin:end])
        elif wire == BYTES and number in (3, 4):
            reference["id_keys" if number == 3 else "description_keys"].append(broken.decode(data[begin:end]))
    return reference


def _strings_of(scope: bytes, broken: Broken) -> tuple[str, str]:
    strings = {1: "", 2: ""}
    for number, wire, begin, end, _ in walk(scope, 0, len(scope)):
        if wire == BYTES and number in strings:
            strings[number] = broken.decode(scope[begin:end])
    return strings[1], strings[2]
