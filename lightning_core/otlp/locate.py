"""Requests of the spool → the bytes of each span, and where it comes from.

The gateway refuses a request whose envelope is broken, and the spool notices bytes that change: what is broken here is a span.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count, repeat
from typing import Any

from lightning_core.otlp.messages import OtlpError, parse_envelope, why_unconverted
from lightning_core.otlp.scopes import SHORT, Origin, read_origin
from lightning_core.spool.spool_format import DAMAGED, Record

# Rejections of one record that are listed one by one; what a hostile request holds beyond them is one more entry.
_LISTED = 1000
# A resource is sent once and copied to each of its spans. So much of it is read for all scopes that name it, and so many
# characters are copied: Arrow's columns end at 2 GB.
_READ = 256 << 20
_COPIED = 256 << 20

# A span as it was sent: its bytes, which of the records it is in, its position there (rejected ones counted), and which of
# the origins it has.
Sent = tuple[bytes, int, int, int]


@dataclass
class Located:
    """The spans of some records; `rejected` is what no span could be made of."""

    records: list[tuple[int, Record]]  # offset in the spool, record
    secret: str | None = field(default=None, repr=False)  # of the home: without it no proof holds
    spans: list[Sent] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    _listed: Counter[int] = field(default_factory=Counter)
    _more: dict[int, list[Any]] = field(default_factory=dict)  # record → first index, count, bytes
    _known: dict[tuple[bytes, ...], int] = field(default_factory=dict)
    _read: int = 0  # bytes of the resources and scopes in `_known`

    def reject(self, record: int, index: int | None, reason: str, raw: bytes) -> None:
        """Keep these bytes aside, with the reason."""
        self._listed[record] += 1
        if self._listed[record] > _LISTED:
            more = self._more.setdefault(record, [index, 0, []])
            more[1] += 1
            more[2].append(raw.hex())
        else:
            unconverted = why_unconverted(raw)
            self._reject(record, index, 1, unconverted[0] if unconverted else reason, raw.hex())

    def all_rejected(self) -> list[dict[str, Any]]:
        """Return what was rejected, by offset and index.

        Of one record, all beyond the first `_LISTED` are one entry.
        """
        for record, (index, more, raw) in self._more.items():
            self._reject(record, index, more, f"{more} more of this request cannot be decoded", "".join(raw))
        self._more.clear()
        rejected = sorted(self.rejected, key=lambda r: (r["offset"], -1 if r["index"] is None else r["index"]))
        bodies = {offset: record.body for offset, record in self.records} if rejected else {}
        for entry in rejected:  # the request once, whole: a span alone does not say whose it was
            body = bodies.pop(entry["offset"], None)
            if body is not None and entry["index"] is not None:
                entry["request"] = body.hex()
        return rejected

    def _reject(self, record: int, index: int | None, count: int, reason: str, raw: str) -> None:
        offset, source = self.records[record]
        self.rejected.append(rejection(offset, index, count, reason, source, raw))

    def origin(self, key: tuple[bytes, ...]) -> int | None:
        """Return the index of this resource and scope in `origins`; None where too much was read already.

        A resource is read anew for each scope below it.
        """
        known = self._known.get(key)
        if known is None:
            self._read += sum(map(len, key))
            if self._read > _READ:
                return None
            known = self._known[key] = len(self.origins)
            self.origins.append(read_origin(*key))
        return known


def rejection(offset: int, index: int | None, count: int, reason: str, source: Record, raw: str) -> dict[str, Any]:
    """Return a line of a file of rejected spans.

    The first line of a request has the whole request too, as `request`, where `span` is only a part of it.
    """
    return {
        "offset": offset,
        "index": index,
        "count": count,
        "reason": reason,
        "received_ns": source.received_ns,
        "rollout_id": source.rollout_id,
        "attempt_id": source.attempt_id,
        "scope": source.scope,
        "source": source.source,
        "span": raw,
    }


def locate(records: list[tuple[int, Record]], secret: str | None = None) -> Located:
    """Return the spans of these records (offset in the spool, record), unread.

    `secret`: of the home, to check proofs by.
    """
    found = Located(records, secret)
    for number, (_, record) in enumerate(records):
        _request(found, number, record.body)
    _shorten(found)
    return found


def _request(found: Located, record: int, data: bytes) -> None:
    if found.records[record][1].source == "damaged":
        found.reject(record, None, DAMAGED, data)
        return
    try:
        envelope = parse_envelope(data)
    except OtlpError as error:
        found.reject(record, None, error.message, data)
        return
    index = 0  # of the next span, or of what was rejected in its place
    for above in envelope.resource_spans:
        for group in above.scope_spans:
            spans = group.spans[:]
            origin = found.origin((above.resource, above.schema_url, group.scope, group.schema_url)) if spans else 0
            if origin is None:
                for place, raw in enumerate(spans, index):
                    found.reject(record, place, f"its resource: more than {_READ} bytes of such are named", raw)
            else:
                found.spans.extend(zip(spans, repeat(record), count(index), repeat(origin)))
            index += len(spans)


def _shorten(found: Located) -> None:
    """Shorten the largest resources at all but their first span, until it fits, where too much would be copied."""
    sizes = [origin.size for origin in found.origins]
    copies = Counter(origin for *_, origin in found.spans)
    total = sum(copies[number] * size for number, size in enumerate(sizes))
    instead: dict[int, int] = {}
    for number in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        if total <= _COPIED or sizes[number] <= SHORT:
            break
        if copies[number] < 2:
            continue
        instead[number] = len(found.origins)
        found.origins.append(found.origins[number].shortened())
        total -= (copies[number] - 1) * max(sizes[number] - found.origins[-1].size, 0)
    seen: set[int] = set()
    for i, (raw, record, index, origin) in enumerate(found.spans if instead else ()):
        if origin in seen:
            found.spans[i] = raw, record, index, instead.get(origin, origin)
        seen.add(origin)
