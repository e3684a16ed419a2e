"""Spans → the columns of `decoded_spans`: one pass over the spans, a list a column.

Attributes go to the columns that `sql/ingest/attribute_aliases.sql` names. Of the keys of a column that a span has, the
one with the lowest rank whose value can be read as the column's type wins. One that loses stays in `attributes`, unless it
says the same; so does a value that cannot be read, and every key that no column knows. Of a key sent twice the last
counts; the others are listed under `otlp.duplicate_attributes`.

Some columns only the gateway fills, some only a holder of the secret. What another sender sets there stays in
`attributes`, too, and `refused` names it: so nothing behind the decoder has to check the sender.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import xxhash
from google.protobuf.unknown_fields import UnknownFieldSet

from lightning_core.otlp import values
from lightning_core.otlp.locate import Located, Sent
from lightning_core.otlp.messages import Event, Link, Span, parse
from lightning_core.otlp.scopes import free_key
from lightning_core.otlp.senders import UNKNOWN, sender_columns
from lightning_core.otlp.values import Seen, joined, texts
from lightning_core.otlp.wire import WireError, walk

_KINDS = {0: "unspecified", 1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
_STATUSES = {0: "unset", 1: "ok", 2: "error"}
_MAX_NS = 2**63 - 1
_MOST = 10_000  # events, links, unknown fields and keys that come again, of a span: each costs many times its bytes
# The column that names what a sender may not say: of several attributes, the first of whose these are.
_REFUSED = "refused"
_SERIOUS: list[str | None] = ["secret", "gateway, secret", "gateway"]
_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)
_READERS: dict[str, Callable[[Any], Any]] = {
    "int": values.integer,
    "float": values.number,
    "int32s": values.int32s,
    "float32s": values.float32s,
}
_MAP = pa.map_(pa.string(), pa.string())


@dataclass(frozen=True)
class Alias:
    """Where an attribute goes: a column, its rank among those that go there, and the type to be read as.

    `sender`: who alone may say it, several with commas between them; None: anybody.
    """

    column: str
    rank: int
    type: str
    sender: str | None = None


# What becomes of an attribute by its key: name, column, cells of the column (None: it stays an attribute), how to read it
# (None: as text), rank.
_Key = tuple[str, str, list[Any] | None, Callable[[Any], Any] | None, int]


class Notes(Seen):
    """What the decoder has to say of a span, as attributes named `otlp.*`."""

    def __init__(self) -> None:
        super().__init__()
        self.extra: dict[str, bytes] = {}

    def write(self, attributes: dict[str, bytes | None]) -> None:
        """Add it to the span's attributes."""
        if self.invalid:
            self.extra["otlp.invalid_utf8"] = orjson.dumps(self.invalid)
        for key, value in self.extra.items():
            attributes[free_key(key, attributes)] = value
        self.clear()

    def clear(self) -> None:
        """Begin with the next span."""
        self.extra.clear()
        self.invalid.clear()


def span_columns(found: Located, sent: list[Sent], aliases: Mapping[str, Alias]) -> dict[str, pa.Array]:
    """Return the columns of these spans by name.

    Broken spans are rejected; columns of attributes that no span has are left out.
    """
    block = _Block(len(sent), aliases)
    senders = [record.source for _, record in found.records]
    kept: list[Sent] = []
    for span in sent:
        raw, record, index, _ = span
        try:
            block.add(raw, senders[record])
        except WireError as error:
            block.undo()
            found.reject(record, index, str(error), raw)
        else:
            kept.append(span)
    return block.arrays() | _origin(found, kept)


class _Block:
    """Columns of spans as they are filled."""

    def __init__(self, size: int, aliases: Mapping[str, Alias]) -> None:
        self._size = size
        self._aliases = aliases
        self._rows = 0
        self._notes = Notes()
        self._cells: dict[str, list[Any]] = {"agent_name_source": [None] * size}
        self._known: dict[str, dict[bytes, _Key]] = defaultdict(dict)  # by the sender of their spans
        self._fixed: list[tuple[Any, ...]] = []
        self._keys: list[str] = []  # of the map `attributes`
        self._values: list[bytes | None] = []
        self._ends = [0]

    def add(self, raw: bytes, sender: str) -> None:
        """Add a span as the next row; WireError where it is broken: `undo` then takes out what there is of it."""
        span, notes = parse(Span, raw), self._notes
        if len(unknown := UnknownFieldSet(span)):
            _note_unknown(unknown, raw, notes)
        trace_id, span_id, parent = span.trace_id, span.span_id, span.parent_span_id
        if len(trace_id) != 16 or trace_id == _NO_TRACE or len(span_id) != 8 or span_id == _NO_SPAN:
            raise _no_id(trace_id, span_id)
        start, end, status = span.start_time_unix_nano, span.end_time_unix_nano, span.status
        if start > _MAX_NS:
            notes.extra["otlp.start_time_unix_nano"] = b"%d" % start
        if end > _MAX_NS:
            notes.extra["otlp.end_time_unix_nano"] = b"%d" % end
        fixed = (
            trace_id.hex(),
            span_id.hex(),
            parent.hex() if parent.strip(b"\0") else None,  # of another length: as sent; zeros are none
            name if (name := span.name).isascii() else notes.decode(name).encode(),
            _KINDS.get(span.kind) or str(span.kind),
            start if 0 < start <= _MAX_NS else None,
            end if 0 < end <= _MAX_NS else None,
            _STATUSES.get(status.code) or str(status.code),
            _text(status.message, notes) if status.message else None,
            _text(span.trace_state, notes) if span.trace_state else None,
            span.flags or None,
            span.dropped_attributes_count or None,
            span.dropped_events_count or None,
            span.dropped_links_count or None,
            _list(events, "events", _event, notes) if (events := span.events) else None,
            _list(links, "links", _link, notes) if (links := span.links) else None,
        )
        attributes = self._attributes(span.attributes[:], sender, notes)
        if notes.extra or notes.invalid:
            notes.write(attributes)
        self._fixed.append(fixed)
        self._keys.extend(attributes)
        self._values.extend(attributes.values())
        self._ends.append(len(self._keys))
        self._rows += 1

    def undo(self) -> None:
        """Take out what a broken span has left."""
        self._notes.clear()
        self._empty(self._rows)

    def _empty(self, row: int) -> None:
        for cells in self._cells.values():
            cells[row] = None

    def _attributes(
        self, pairs: Sequence[Any], sender: str, notes: Notes, unique: bool = False
    ) -> dict[str, bytes | None]:
        """Fill the cells of the next row; what has none is returned."""
        row = self._rows
        rest: dict[str, bytes | None] = {}
        won: dict[str, _Key] = {}  # by column
        lost: list[tuple[_Key, Any]] = []
        known, seen, noted = self._known[sender], set(), len(notes.invalid)
        for pair in pairs:
            key, value = pair.key, pair.value
            entry = known.get(key) or self._learn(key, sender, notes)
            name, column, cells, read, rank = entry
            seen.add(name)
            made: Any
            if read is None:
                made = value.string_value  # as most are
                if not made or not made.isascii():
                    made = values.text(value, notes)
            else:
                made = read(value)
            if cells is None:
                rest[name] = made
            elif made is None:
                rest[name] = values.text(value, notes)
            elif (held := cells[row]) is None:
                cells[row], won[column] = made, entry
            elif rank < won[column][4]:
                lost.append((won[column], held))
                cells[row], won[column] = made, entry
            else:
                lost.append((entry, made))
        if not unique and (len(seen) != len(pairs) or "" in seen):
            del notes.invalid[noted:]
            self._empty(row)
            return self._attributes(_last(pairs, notes), sender, notes, unique=True)
        for (name, column, _, read, _), made in lost:
            if made != self._cells[column][row]:
                rest[name] = made if read is None else _text_of(pairs, name)
        if _REFUSED in won:
            refused = won[_REFUSED][0]
            rest[refused] = _text_of(pairs, refused)
        if "agent_name" in won:
            self._cells["agent_name_source"][row] = won["agent_name"][0]
        return rest

    def _learn(self, key: bytes, sender: str, notes: Notes) -> _Key:
        before = len(notes.invalid)
        name = notes.decode(key)
        entry: _Key = name, "", None, None, 0
        if (alias := self._aliases.get(name)) is not None:
            refused = alias.sender is not None and sender not in (*alias.sender.split(", "), UNKNOWN)
            column = _REFUSED if refused else alias.column
            cells = self._cells.setdefault(column, [None] * self._size)
            read = (lambda _: key) if refused else _READERS.get(alias.type)
            entry = name, column, cells, read, _SERIOUS.index(alias.sender) if refused else alias.rank
        if len(notes.invalid) == before:  # a key that is no UTF-8 is noted each time
            self._known[sender][key] = entry
        return entry

    def arrays(self) -> dict[str, pa.Array]:
        """Return the columns by name."""
        columns = zip(*self._fixed, strict=True) if self._fixed else [()] * len(_FIXED)
        made = {name: _column(column, kind) for (name, kind), column in zip(_FIXED.items(), columns, strict=True)}
        types = {alias.column: alias.type for alias in self._aliases.values()}
        for name, cells in self._cells.items():
            made[name] = _column(cells[: self._rows], types.get(name, "text"))
        keys, ends = pa.array(self._keys, pa.string()), pa.array(self._ends, pa.int32())
        made["attributes"] = pa.MapArray.from_arrays(ends, keys, _column(self._values, "text"))
        return made


_FIXED = {
    "trace_id": "text", "span_id": "text", "parent_span_id": "text", "name": "text", "kind": "text", "start_ns": "int",
    "end_ns": "int", "status": "text", "status_message": "text", "trace_state": "text", "flags": "int",
    "dropped_attributes": "int", "dropped_events": "int", "dropped_links": "int", "events": "text", "links": "text",
}  # fmt: skip


def _column(cells: Sequence[Any], kind: str) -> pa.Array:
    if kind == "text":  # as bytes, which are not checked again
        return pa.Array.from_buffers(pa.string(), len(cells), pa.array(cells, pa.binary()).buffers())
    if kind in ("int", "float"):
        return pa.array(cells, pa.int64() if kind == "int" else pa.float64())
    ends = [0]
    for cell in cells:
        ends.append(ends[-1] + len(cell or b"") // 4)
    numbers = pa.Array.from_buffers(
        pa.int32() if kind == "int32s" else pa.float32(), ends[-1], [None, pa.py_buffer(b"".join(filter(None, cells)))]
    )
    return pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()), numbers, mask=pa.array([cell is None for cell in cells])
    )


def _no_id(trace_id: bytes, span_id: bytes) -> WireError:
    """Return a WireError that says what is wrong with the ids of a span."""
    for raw, size, label in ((trace_id, 16, "trace id"), (span_id, 8, "span id")):
        if not raw:
            return WireError(f"the span is without {label}")
        if len(raw) != size:
            return WireError(f"the span has a {label} of {len(raw)} bytes; OTLP wants {size}")
        if not any(raw):
            return WireError(f"the span has a {label} of zeros")
    raise AssertionError("the ids are as OTLP wants them")


def _text(raw: bytes, notes: Notes) -> bytes:
    return raw if raw.isascii() else notes.decode(raw).encode()


def _note_unknown(unknown: Any, raw: bytes, notes: Notes) -> None:
    """Keep the fields of a span that this OTLP does not have, as bytes."""
    _refuse_many(unknown, "unknown fields")
    known = {(field.field_number, field.wire_type) for field in unknown}
    listed = [
        {"field": number, "wire_type": wire, "bytes": raw[begin:end].hex()}
        for number, wire, begin, end in walk(raw, 0, len(raw))
        if (number, wire) in known
    ]
    notes.extra["otlp.unknown_fields"] = orjson.dumps(listed)


def _refuse_many(sent: Any, label: str) -> None:
    if len(sent) > _MOST:
        raise WireError(f"the span has more than {_MOST} {label}")


def _last(pairs: Sequence[Any], notes: Notes) -> list[Any]:
    """Return the last attribute of each key; the others are noted. A key that is a number gets its name."""
    for pair in pairs:
        if pair.key_strindex and not pair.key:
            pair.key = values.key_of(pair, Seen()).encode()
    names = [values.key_of(pair, Seen()) for pair in pairs]
    last = {name: i for i, name in enumerate(names)}
    if len(pairs) - len(last) > _MOST:
        raise WireError(f"more than {_MOST} attributes come twice")
    kept = sorted(last.values())
    if len(kept) < len(pairs):
        again = texts([pair for i, pair in enumerate(pairs) if last[names[i]] != i], notes)
        notes.extra["otlp.duplicate_attributes"] = orjson.dumps([{"key": key, "value": text} for key, text in again])
    return [pairs[i] for i in kept]


def _text_of(pairs: Sequence[Any], name: str) -> bytes | None:
    return next(values.text(pair.value, Seen()) for pair in pairs if pair.key == name.encode())


def _list(sent: Any, label: str, one: Callable[[bytes, Seen], dict[str, Any]], notes: Notes) -> bytes | None:
    """Return events or links as a JSON list; those that hold nothing are counted."""
    _refuse_many(sent, label)
    filled = [raw for raw in sent if raw]
    if len(filled) < len(sent):
        notes.extra[f"otlp.empty_{label}"] = b"%d" % (len(sent) - len(filled))
    try:
        return orjson.dumps([one(raw, notes) for raw in filled]) if filled else None
    except WireError as error:
        raise WireError(f"an event or a link is broken: {error}") from None


def _event(raw: bytes, seen: Seen) -> dict[str, Any]:
    sent = parse(Event, raw)
    seen.values = 0
    event = {
        "time_ns": sent.time_unix_nano,
        "name": seen.decode(sent.name),
        "attributes": joined(texts(sent.attributes, seen)),
    }
    if sent.dropped_attributes_count:
        event["dropped_attributes_count"] = sent.dropped_attributes_count
    return event


def _link(raw: bytes, seen: Seen) -> dict[str, Any]:
    sent = parse(Link, raw)
    seen.values = 0
    link = {
        "trace_id": sent.trace_id.hex(),
        "span_id": sent.span_id.hex(),
        "attributes": joined(texts(sent.attributes, seen)),
    }
    more = {
        "trace_state": seen.decode(sent.trace_state),
        "dropped_attributes_count": sent.dropped_attributes_count,
        "flags": sent.flags,
    }
    return link | {key: value for key, value in more.items() if value}


def _origin(found: Located, spans: list[Sent]) -> dict[str, pa.Array]:
    """Return the columns of what is known of spans from their record, resource and scope."""
    digest, seeds = xxhash.xxh3_64_intdigest, [origin.seed for origin in found.origins]
    hashes = pa.array([digest(raw, seeds[origin]) for raw, _, _, origin in spans], pa.uint64())
    record = pa.array([record for _, record, _, _ in spans], pa.int32())
    origin = pa.array([origin for _, _, _, origin in spans], pa.int32())
    records = [r for _, r in found.records]
    return sender_columns(found, spans) | {
        "received_ns": pa.array([r.received_ns for r in records], pa.int64()).take(record),
        "record_offset": pa.array([offset for offset, _ in found.records], pa.int64()).take(record),
        "record_index": pa.array([index for _, _, index, _ in spans], pa.int32()),
        # As a dictionary: DuckDB then looks into each resource once, and not once a span.
        "resource": pa.DictionaryArray.from_arrays(origin, pa.array([o.resource for o in found.origins], _MAP)),
        "instrumentation": pa.array([o.instrumentation for o in found.origins], pa.string()).take(origin),
        "content_hash": hashes.view(pa.int64()),
    }
