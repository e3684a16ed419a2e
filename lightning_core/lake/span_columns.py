"""Spans on the wire → the columns of `decoded_spans`, all of them at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import xxhash

from lightning_core.lake import schema
from lightning_core.lake.any_value import Broken, key_value, texts
from lightning_core.lake.attributes import Attributes, BrokenSpans, Notes, content, read_attributes, words
from lightning_core.lake.located import Located
from lightning_core.lake.pivot import pivot
from lightning_core.lake.scopes import free_key
from lightning_core.lake.texts import Texts, invalid
from lightning_core.lake.wire import BYTES, FIXED32, FIXED64, VARINT, Fields, Ints, WireError, fields, walk

# Fields of a Span by number, and the wire type each must have.
(TRACE_ID, SPAN_ID, TRACE_STATE, PARENT, NAME, KIND, START, END, ATTRIBUTES, DROPPED_ATTRIBUTES, EVENTS, DROPPED_EVENTS,
 LINKS, DROPPED_LINKS, STATUS, FLAGS) = range(1, 17)  # fmt: skip
_WIRE = np.array(
    [255, BYTES, BYTES, BYTES, BYTES, BYTES, VARINT, FIXED64, FIXED64, BYTES, VARINT, BYTES, VARINT, BYTES, VARINT, BYTES, FIXED32],
    np.uint8,
)  # fmt: skip
_KINDS = {0: "unspecified", 1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
_STATUSES = {0: "unset", 1: "ok", 2: "error"}
_MAX_NS = 2**63 - 1
_AT_ONCE = 1 << 16  # fields that become Python's numbers together
_TINY = 16  # bytes of an event, a link or a field, up to which what was made of it is kept for the next like it
_MOST = 10_000  # events, links, and fields that are unknown, of a span: one of two bytes becomes an object
_HEX = np.frombuffer(b"".join(b"%02x" % n for n in range(256)), np.uint8).reshape(256, 2)

View = npt.NDArray[np.uint8]


def span_columns(found: Located, view: View, alive: Ints) -> pa.Table:
    """`schema.DECODED` of the spans `alive` of `found`; a column that none of them has is of Arrow's type null.

    Raises BrokenSpans, by position in `alive`.
    """
    data, count = found.data, len(alive)
    start, stop = (np.frombuffer(a, np.int32)[alive].astype(np.int64) for a in (found.start, found.stop))
    sent, broken = fields(data, view, start, stop)
    if broken:
        raise BrokenSpans(broken)
    _refuse_too_many(sent, count)
    arrays = _ids(data, view, sent, count)
    status, broken = fields(data, view, *content(sent, sent.last(STATUS, BYTES, count)))
    if broken:
        raise BrokenSpans({i: f"the status is broken: {reason}" for i, reason in broken.items()})
    notes, made = Notes(), Texts(data)
    _note_unknown(data, sent, notes)
    attributes = read_attributes(data, view, sent, ATTRIBUTES, made, notes)
    pivoted = pivot(attributes, count)
    columns = pivoted.texts | {
        "name": _strings(data, sent, NAME, count, made, notes),
        "trace_state": _strings(data, sent, TRACE_STATE, count, made, notes),
        "status_message": _strings(data, status, 2, count, made, notes),
        "events": _json(data, sent, EVENTS, _event, made, notes, count),
        "links": _json(data, sent, LINKS, _link, made, notes, count),
    }
    columns["name"][1][columns["name"][1] < 0] = 0  # a span always has a name, if an empty one
    arrays |= _numbers(view, sent, status, count, notes)
    keys, offsets, columns["rest"] = _rest(attributes, pivoted.rest, notes, count)
    views = made.arrays(columns, keep=["rest"])
    arrays["attributes"] = pa.MapArray.from_arrays(offsets, keys, views.pop("rest"))
    arrays |= pivoted.arrays | views | _origin(found, alive, start, stop)
    nothing = pa.nulls(count)
    return pa.table({c.name: arrays.get(c.name, nothing) for c in schema.DECODED})


def _refuse_too_many(sent: Fields, count: int) -> None:
    """Raises BrokenSpans for spans that have more of something than is worth the memory."""
    broken: dict[int, str] = {}
    for name, rows in (
        ("events", sent.rows(EVENTS, BYTES)),
        ("links", sent.rows(LINKS, BYTES)),
        ("unknown fields", _unknown(sent)),
    ):
        for i in np.flatnonzero(np.bincount(sent.message[rows], minlength=count) > _MOST).tolist():
            broken[i] = f"the span has more than {_MOST} {name}"
    if broken:
        raise BrokenSpans(broken)


def _ids(data: bytes, view: View, sent: Fields, count: int) -> dict[str, pa.Array]:
    """Ids in hex. Raises BrokenSpans where OTLP allows none such."""
    broken: dict[int, str] = {}
    result = {}
    for name, number, size in (("span_id", SPAN_ID, 8), ("trace_id", TRACE_ID, 16)):
        begin, end = content(sent, sent.last(number, BYTES, count))
        length, label = end - begin, name.replace("_", " ")
        for i in np.flatnonzero(length != size).tolist():
            wrong = f"has a {label} of {length[i]} bytes; OTLP wants {size}"
            broken[i] = f"the span {wrong if length[i] else f'is without {label}'}"
        zero = words(view, begin) == 0
        for i in np.flatnonzero((length == size) & zero & (words(view, begin + size - 8) == 0)).tolist():
            broken[i] = f"the span has a {label} of zeros"
        result[name] = begin
    if broken:
        raise BrokenSpans(broken)
    begin, end = content(sent, sent.last(PARENT, BYTES, count))
    plain = (end - begin == 8) & (words(view, begin) != 0)
    odd = {i: data[begin[i] : end[i]].hex() for i in np.flatnonzero(~plain & (end > begin)).tolist()}
    parents = _hex(view, begin, 8, plain)
    if any(h.strip("0") for h in odd.values()):  # of another length: as sent; zeros are none
        listed = parents.to_pylist()
        for i, h in odd.items():
            listed[i] = h if h.strip("0") else None
        parents = pa.array(listed, pa.string())
    every = np.ones(count, np.bool_)
    return {
        "trace_id": _hex(view, result["trace_id"], 16, every),
        "span_id": _hex(view, result["span_id"], 8, every),
        "parent_span_id": parents,
    }


def _hex(view: View, begin: Ints, size: int, valid: npt.NDArray[np.bool_]) -> pa.Array:
    """The `size` bytes at each position as hex; NULL where not valid."""
    digits = _HEX[view[begin[valid][:, None] + np.arange(size)]].tobytes()
    offsets = np.append(0, np.cumsum(valid)) * (2 * size)
    bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    buffers = [bitmap, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(digits)]
    return pa.Array.from_buffers(pa.string(), len(begin), buffers)


def _numbers(view: View, sent: Fields, status: Fields, count: int, notes: Notes) -> dict[str, pa.Array]:
    result: dict[str, pa.Array] = {}
    for column, number, key in (
        ("start_ns", START, "otlp.start_time_unix_nano"),
        ("end_ns", END, "otlp.end_time_unix_nano"),
    ):
        row = sent.last(number, FIXED64, count)
        time = np.where(row >= 0, words(view, content(sent, row)[0]), 0).astype(np.uint64)
        beyond = time > np.uint64(_MAX_NS)
        for i in np.flatnonzero(beyond).tolist():
            notes.set(i, key, str(time[i]))
        result[column] = pa.array(time.astype(np.int64), mask=beyond | (time == 0))
    for column, found, number, names in (("kind", sent, KIND, _KINDS), ("status", status, 3, _STATUSES)):
        values = _varints(found, number, count).astype(np.uint32).view(np.int32)
        unique, which = np.unique(values, return_inverse=True)
        result[column] = pa.array([names.get(v, str(v)) for v in unique.tolist()], pa.string()).take(pa.array(which))
    row = sent.last(FLAGS, FIXED32, count)
    flags = np.where(row >= 0, words(view, content(sent, row)[0]) & np.uint64(0xFFFFFFFF), 0).astype(np.int64)
    result["flags"] = pa.array(flags, mask=flags == 0)
    for column, number in (
        ("dropped_attributes", DROPPED_ATTRIBUTES),
        ("dropped_events", DROPPED_EVENTS),
        ("dropped_links", DROPPED_LINKS),
    ):
        dropped = _varints(sent, number, count).astype(np.uint32).astype(np.int64)
        result[column] = pa.array(dropped, mask=dropped == 0)
    return result


def _varints(found: Fields, number: int, count: int) -> npt.NDArray[np.uint64]:
    row = found.last(number, VARINT, count)
    return np.where(row >= 0, found.value[row], 0).astype(np.uint64) if len(found.value) else np.zeros(count, np.uint64)


def _strings(data: bytes, found: Fields, number: int, count: int, made: Texts, notes: Notes) -> tuple[Ints, Ints]:
    """(start, length) of a text field; an empty one is NULL."""
    begin, end = content(found, found.last(number, BYTES, count))
    start, length = begin.copy(), np.where(end > begin, end - begin, -1)
    bad = invalid(data, start, length)
    for i in bad:
        notes.add(i, "otlp.invalid_utf8", data[begin[i] : end[i]].hex())
    start[bad], length[bad] = made.add([data[begin[i] : end[i]].decode(errors="replace").encode() for i in bad])
    return start, length


def _json(data: bytes, sent: Fields, number: int, one: Any, made: Texts, notes: Notes, count: int) -> tuple[Ints, Ints]:
    """(start, length) of the JSON list that `one` makes of the messages in a field; NULL where there are none."""
    rows = sent.rows(number, BYTES)
    hollow = sent.start[rows] == sent.stop[rows]
    label = "links" if number == LINKS else "events"
    for span, empty in zip(
        *(c.tolist() for c in np.unique(sent.message[rows[hollow]], return_counts=True)), strict=True
    ):
        notes.set(span, f"otlp.empty_{label}", str(empty))
    rows = rows[~hollow]
    lists: dict[int, list[bytes]] = {}
    broken: dict[int, str] = {}
    known: dict[bytes, bytes] = {}
    for first in range(0, len(rows), _AT_ONCE):
        some = rows[first : first + _AT_ONCE]
        for span, begin, end in zip(*(c[some].tolist() for c in (sent.message, sent.start, sent.stop)), strict=True):
            made_before = known.get(data[begin:end]) if end - begin <= _TINY else None
            if made_before is not None:
                lists.setdefault(span, []).append(made_before)
                continue
            lost = Broken()
            try:
                text = orjson.dumps(one(data, begin, end, lost))
            except WireError as error:
                broken[span] = f"an event or a link is broken: {error}"
                continue
            lists.setdefault(span, []).append(text)
            notes.add(span, "otlp.invalid_utf8", *lost.texts)
            if end - begin <= _TINY and not lost.texts and len(known) < _AT_ONCE:
                known[data[begin:end]] = text
    if broken:
        raise BrokenSpans(broken)
    start, length = np.zeros(count, np.int64), np.full(count, -1, np.int64)
    spans = list(lists)
    start[spans], length[spans] = made.add([b"[%b]" % b",".join(lists.pop(span)) for span in spans])
    return start, length


def _event(data: bytes, start: int, stop: int, broken: Broken) -> dict[str, Any]:
    event: dict[str, Any] = {"time_ns": 0, "name": "", "attributes": []}
    for number, wire, begin, end, value in walk(data, start, stop):
        if (number, wire) == (1, FIXED64):
            event["time_ns"] = int.from_bytes(data[begin:end], "little")
        elif (number, wire) == (2, BYTES):
            event["name"] = broken.decode(data[begin:end])
        elif (number, wire) == (3, BYTES):
            event["attributes"].append(key_value(data, begin, end, broken))
        elif (number, wire) == (4, VARINT) and value:
            event["dropped_attributes_count"] = value & 0xFFFFFFFF
    event["attributes"] = texts(event["attributes"])
    return event


def _link(data: bytes, start: int, stop: int, broken: Broken) -> dict[str, Any]:
    link: dict[str, Any] = {"trace_id": "", "span_id": "", "attributes": []}
    for number, wire, begin, end, value in walk(data, start, stop):
        if wire == BYTES and number in (1, 2):
            link["trace_id" if number == 1 else "span_id"] = data[begin:end].hex()
        elif (number, wire) == (3, BYTES) and end > begin:
            link["trace_state"] = broken.decode(data[begin:end])
        elif (number, wire) == (4, BYTES):
            link["attributes"].append(key_value(data, begin, end, broken))
        elif (number, wire) == (5, VARINT) and value:
            link["dropped_attributes_count"] = value & 0xFFFFFFFF
        elif (number, wire) == (6, FIXED32):
            link["flags"] = int.from_bytes(data[begin:end], "little")
    link["attributes"] = texts(link["attributes"])
    return link


def _unknown(sent: Fields) -> Ints:
    return np.flatnonzero(_WIRE[np.where(sent.number <= FLAGS, sent.number, 0)] != sent.wire)


def _note_unknown(data: bytes, sent: Fields, notes: Notes) -> None:
    """Fields of a span that this OTLP does not have are kept as bytes."""
    rows = _unknown(sent)
    known: dict[tuple[int, int, bytes], dict[str, Any]] = {}
    for first in range(0, len(rows), _AT_ONCE):
        some = rows[first : first + _AT_ONCE]
        columns = (c[some].tolist() for c in (sent.message, sent.number, sent.wire, sent.start, sent.stop))
        for span, number, wire, start, stop in zip(*columns, strict=True):
            raw = data[start:stop]
            entry = known.get((number, wire, raw)) if len(raw) <= _TINY else None
            if entry is None:
                entry = {"field": number, "wire_type": wire, "bytes": raw.hex()}
                if len(raw) <= _TINY and len(known) < _AT_ONCE:
                    known[number, wire, raw] = entry
            notes.add(span, "otlp.unknown_fields", entry)


def _rest(sent: Attributes, rows: Ints, notes: Notes, count: int) -> tuple[pa.Array, pa.Array, tuple[Ints, Ints]]:
    """(keys, offsets, (start, length) of the values) of the map of attributes that are no column."""
    keys = list(sent.keys)
    span, key, start, length = sent.span[rows], sent.key[rows], sent.start[rows], sent.length[rows]
    if notes.of_span:
        codes = {name: code for code, name in enumerate(keys)}
        more: list[tuple[int, int, bytes]] = []
        for of, values in sorted(notes.of_span.items()):
            first, last = np.searchsorted(span, [of, of + 1])
            taken = {keys[code] for code in key[first:last].tolist()}
            for name, value in values.items():
                name = free_key(name, taken)
                taken.add(name)
                if name not in codes:
                    codes[name] = len(keys)
                    keys.append(name)
                more.append((of, codes[name], value.encode() if isinstance(value, str) else orjson.dumps(value)))
        added = sent.texts.add([value for _, _, value in more])
        span, key = np.append(span, [of for of, _, _ in more]), np.append(key, [code for _, code, _ in more])
        start, length = np.append(start, added[0]), np.append(length, added[1])
        order = np.argsort(span, kind="stable")
        span, key, start, length = span[order], key[order], start[order], length[order]
    offsets = np.searchsorted(span, np.arange(count + 1)).astype(np.int32)
    return pa.array(keys, pa.string()).take(pa.array(key)), pa.array(offsets), (start, length)


def _origin(found: Located, alive: Ints, start: Ints, stop: Ints) -> dict[str, pa.Array]:
    """What is known of a span from its record, resource and scope."""
    record, index, scope = (np.frombuffer(a, np.int32)[alive] for a in (found.record, found.index, found.scope))
    of_record, of_scope = pa.array(record), pa.array(scope)
    records = [r for _, r in found.records]
    resources = pa.array([s.resource for s in found.scopes], pa.map_(pa.string(), pa.string()))
    hashes = _content_hashes(found, scope, start, stop)
    return {
        "scoped_rollout_id": pa.array([r.rollout_id for r in records], pa.string()).take(of_record),
        "scoped_attempt_id": pa.array([r.attempt_id for r in records], pa.string()).take(of_record),
        "scope": pa.array([r.scope for r in records], pa.string()).take(of_record),
        "received_ns": pa.array([r.received_ns for r in records], pa.int64()).take(of_record),
        "record_offset": pa.array([offset for offset, _ in found.records], pa.int64()).take(of_record),
        "record_index": pa.array(index, pa.int32()),
        "resource": resources.take(of_scope),
        "instrumentation": pa.array([s.instrumentation for s in found.scopes], pa.string()).take(of_scope),
        "content_hash": pa.array(hashes.view(np.int64)),
    }


def _content_hashes(found: Located, scope: npt.NDArray[np.int32], start: Ints, stop: Ints) -> npt.NDArray[np.uint64]:
    """xxh3 of each span's bytes, seeded with that of its resource's."""
    data, seeds, digest = memoryview(found.data), [s.seed for s in found.scopes], xxhash.xxh3_64_intdigest
    places = zip(start.tolist(), stop.tolist(), scope.tolist(), strict=True)
    return np.array([digest(data[begin:end], seeds[of]) for begin, end, of in places], np.uint64)
