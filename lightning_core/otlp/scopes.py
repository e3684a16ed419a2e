"""Resources and instrumentation scopes: where spans come from. A few a request, and copied to each of its spans."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import orjson
import xxhash

from lightning_core import names
from lightning_core.otlp.messages import Resource, Scope, parse
from lightning_core.otlp.proof import proves
from lightning_core.otlp.values import Seen, joined, texts
from lightning_core.otlp.wire import WireError

_WHOSE = (names.ROLLOUT_ID, names.ATTEMPT_ID)  # kept first where a resource is shortened
SHORT, _SHORT_ATTRIBUTE = 512, 256  # characters that `shortened` leaves of a resource, and of an attribute


@dataclass(frozen=True)
class Origin:
    """Where spans come from: the resource's attributes and the instrumentation scope."""

    resource: list[tuple[str, str | None]]
    instrumentation: str | None
    seed: int  # of the content hashes of its spans
    proof: str | None = None  # that its spans are those of the attempt that the resource names

    def proven(self, secret: str | None, received_ns: int) -> tuple[str, str] | None:
        """Return the rollout and the attempt whose spans these are, as the proof says; None without one that holds."""
        if self.proof is None or secret is None:
            return None
        named = dict(self.resource)
        rollout_id, attempt_id = named.get(names.ROLLOUT_ID) or "", named.get(names.ATTEMPT_ID) or ""
        holds = proves(secret, self.proof, rollout_id, attempt_id, received_ns / 1e9)
        return (rollout_id, attempt_id) if holds else None

    @property
    def size(self) -> int:
        """Return how many characters each span has a copy of."""
        return sum(len(key) + len(value or "") for key, value in self.resource)

    def shortened(self) -> Origin:
        """Return it with only its resource's short attributes, and `otlp.resource.shortened`: how much is not there."""
        kept: list[tuple[str, str | None]] = []
        room = SHORT
        for key, value in sorted(self.resource, key=lambda pair: pair[0] not in _WHOSE):
            needed = len(key) + len(value or "")
            if needed <= min(room, _SHORT_ATTRIBUTE):
                kept.append((key, value))
                room -= needed
        lost = {"attributes": len(self.resource) - len(kept), "characters": self.size - (SHORT - room)}
        kept.append((free_key("otlp.resource.shortened", dict(kept)), orjson.dumps(lost).decode()))
        return Origin(kept, self.instrumentation, self.seed, self.proof)


def read_origin(resource: bytes, resource_schema: bytes, scope: bytes, scope_schema: bytes) -> Origin:
    """Read a resource and a scope with the schema URLs of both. What has no place of its own is under `otlp.*`."""
    seen = Seen()
    extra: dict[str, str] = {}
    read_resource, sent = _read("resource", Resource, resource, seen, extra)
    read_scope, of_scope = _read("scope", Scope, scope, seen, extra)
    if read_resource.entity_refs:
        extra["otlp.resource.entity_refs"] = orjson.dumps(
            [_reference(r, seen) for r in read_resource.entity_refs]
        ).decode()
    name, version = seen.decode(read_scope.name), seen.decode(read_scope.version)
    if "@" in name or (version and not name):
        extra["otlp.scope.name"] = name
    if of_scope:
        extra["otlp.scope.attributes"] = orjson.dumps(joined(of_scope)).decode()
    for label, raw in (("resource", resource_schema), ("scope", scope_schema)):
        if raw:
            extra[f"otlp.{label}.schema_url"] = seen.decode(raw)
    pairs = dict(sent)
    proof = pairs.pop(names.PROOF, None)
    sent = [pair for pair in sent if pair[0] != names.PROOF]  # none is kept, also where there are several
    if len(pairs) != len(sent):
        extra["otlp.duplicate_attributes"] = orjson.dumps(repeated(sent)).decode()
    if seen.invalid:
        extra["otlp.invalid_utf8"] = orjson.dumps(seen.invalid).decode()
    for key, value in extra.items():
        pairs[free_key(key, pairs)] = value
    instrumentation = f"{name}@{version}" if version else name or None
    return Origin(list(pairs.items()), instrumentation, xxhash.xxh3_64_intdigest(resource), proof)


def free_key(key: str, taken: Container[str]) -> str:
    """Return the key under which the decoder writes `key`: an attribute that was sent under that name keeps it."""
    while key in taken:
        key += "_"
    return key


def repeated(sent: list[tuple[str, str | None]]) -> list[dict[str, str | None]]:
    """Return the attributes whose key comes again later."""
    last = {key: i for i, (key, _) in enumerate(sent)}
    return [{"key": key, "value": value} for i, (key, value) in enumerate(sent) if last[key] != i]


def _read(
    label: str, kind: Any, raw: bytes, seen: Seen, extra: dict[str, str]
) -> tuple[Any, list[tuple[str, str | None]]]:
    """Return (the message, its attributes); an empty message where it is broken."""
    try:
        message = parse(kind, raw)
        sent = texts(message.attributes, seen)
    except WireError:
        extra[f"otlp.{label}.unreadable"] = raw.hex()
        return kind(), []
    if message.dropped_attributes_count:
        extra[f"otlp.{label}.dropped_attributes_count"] = str(message.dropped_attributes_count)
    return message, sent


def _reference(sent: Any, seen: Seen) -> dict[str, Any]:
    return {
        "schema_url": seen.decode(sent.schema_url),
        "type": seen.decode(sent.type),
        "id_keys": [seen.decode(key) for key in sent.id_keys],
        "description_keys": [seen.decode(key) for key in sent.description_keys],
    }
