"""Requests of the spool → where each span lies, and under which resource and instrumentation scope.

Lenient where protobuf is not: a request that is cut off, or broken somewhere, still gives the spans before that place,
and the bytes behind it are rejected with the reason.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightning_core.lake.otlp_envelope import why_unconverted
from lightning_core.lake.scopes import SHORT, Scope, read_scope, shortened, size
from lightning_core.lake.wire import BYTES, CutOff, WireError, walk
from lightning_core.spool.spool import Record

# Rejections of one record that are listed one by one; what a hostile request holds beyond them is one more entry.
_LISTED = 1000
# A resource is sent once and copied to each of its spans. So much of it is read for all scopes that name it, and so many
# characters are copied: Arrow's columns end at 2 GB.
_READ = 256 << 20
_COPIED = 256 << 20

Unread = tuple[str, int, int]  # reason, start, stop


@dataclass
class Located:
    """Spans by position in `data`, one element a span; `rejected` is what no span could be made of."""

    data: bytes
    records: list[tuple[int, Record]]  # offset in the spool, record
    scopes: list[Scope] = field(default_factory=list)
    start: array[int] = field(default_factory=lambda: array("i"))
    stop: array[int] = field(default_factory=lambda: array("i"))
    record: array[int] = field(default_factory=lambda: array("i"))  # which of `records`
    index: array[int] = field(default_factory=lambda: array("i"))  # position in the request, rejected ones counted
    scope: array[int] = field(default_factory=lambda: array("i"))  # which of `scopes`
    rejected: list[dict[str, Any]] = field(default_factory=list)
    _listed: Counter[int] = field(default_factory=Counter)
    _more: dict[int, list[Any]] = field(default_factory=dict)  # record → first index, count, bytes
    _known: dict[tuple[bytes, ...], int] = field(default_factory=dict)
    _read: int = 0  # bytes of the resources and scopes in `_known`

    def reject(self, record: int, index: int | None, reason: str, start: int, stop: int) -> None:
        """Keep the bytes data[start:stop] aside, with the reason."""
        self._listed[record] += 1
        if self._listed[record] > _LISTED:
            more = self._more.setdefault(record, [index, 0, []])
            more[1] += 1
            more[2].append(self.data[start:stop].hex())
        else:
            self._reject(record, index, 1, reason, self.data[start:stop].hex())

    def all_rejected(self) -> list[dict[str, Any]]:
        """What was rejected, by offset and index. Of one record, all beyond the first so many are one entry."""
        for record, (index, count, raw) in self._more.items():
            self._reject(record, index, count, f"{count} more of this request cannot be decoded", "".join(raw))
        self._more.clear()
        return sorted(self.rejected, key=lambda r: (r["offset"], -1 if r["index"] is None else r["index"]))

    def _reject(self, record: int, index: int | None, count: int, reason: str, raw: str) -> None:
        offset, source = self.records[record]
        if raw.startswith("00") and (unconverted := why_unconverted(bytes.fromhex(raw))) is not None:
            reason = unconverted[0]
        self.rejected.append(
            {
                "offset": offset,
                "index": index,
                "count": count,
                "reason": reason,
                "received_ns": source.received_ns,
                "rollout_id": source.rollout_id,
                "attempt_id": source.attempt_id,
                "span": raw,
            }
        )


def locate(records: list[tuple[int, Record]], data: bytes) -> Located:
    """The spans of `records`, whose bodies lie one after another in `data`."""
    found = Located(data, records)
    at = 0
    for number, (_, record) in enumerate(records):
        end = at + len(record.body)
        _request(found, number, at, end)
        at = end
    _shorten(found)
    return found


def _shorten(found: Located) -> None:
    """Where too much would be copied, the largest resources are whole at their first span only, until it fits."""
    of_span = np.frombuffer(found.scope, np.int32)
    sizes = [size(scope) for scope in found.scopes]
    copies = np.bincount(of_span, minlength=len(sizes)).tolist()
    total = sum(n * s for n, s in zip(copies, sizes, strict=True))
    instead = np.arange(len(sizes), dtype=np.int32)
    for number in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        if total <= _COPIED or sizes[number] <= SHORT:
            break
        if copies[number] < 2:
            continue
        found.scopes.append(shortened(found.scopes[number]))
        total -= (copies[number] - 1) * max(sizes[number] - size(found.scopes[-1]), 0)
        instead[number] = len(found.scopes) - 1
    whole, first = np.unique(of_span, return_index=True)
    of_span[:] = instead[of_span]
    of_span[first] = whole


def _request(found: Located, record: int, start: int, stop: int) -> None:
    data = found.data
    index = 0  # of the next span, or of what was rejected in its place
    unread: list[Unread] = []
    for begin, end in _parts(data, start, stop, 1, {}, unread):
        of_resource: dict[int, tuple[int, int]] = {}
        unread_of_resource: list[Unread] = []
        for scope_begin, scope_end in list(_parts(data, begin, end, 2, of_resource, unread_of_resource)):
            of_scope: dict[int, tuple[int, int]] = {}
            unread_of_scope: list[Unread] = []
            before = len(found.start)
            for span_begin, span_end in _parts(data, scope_begin, scope_end, 2, of_scope, unread_of_scope, whole=True):
                found.start.append(span_begin)
                found.stop.append(span_end)
                found.index.append(index)
                index += 1
            spans = len(found.start) - before
            found.record.extend([record] * spans)
            scope = _scope(found, of_resource, of_scope) if spans else 0
            if scope is None:
                _reject_from(found, before)
            else:
                found.scope.extend([scope] * spans)
            index = _reject_all(found, record, index, unread_of_scope)
        index = _reject_all(found, record, index, unread_of_resource)
    index = _reject_all(found, record, index, unread)
    if stop > start and not index and not _is_empty_request(data, start, stop):
        found.reject(record, None, "no OTLP request: there is no span in it", start, stop)


def _reject_all(found: Located, record: int, index: int, unread: list[Unread]) -> int:
    for reason, begin, end in unread:
        found.reject(record, index, reason, begin, end)
        index += 1
    return index


def _reject_from(found: Located, first: int) -> None:
    """Reject the spans from the `first` on, whose scope is not read."""
    columns = found.record, found.index, found.start, found.stop
    for record, index, start, stop in zip(*(column[first:] for column in columns), strict=True):
        found.reject(record, index, f"its resource: more than {_READ} bytes of such are named", start, stop)
    for column in columns:
        del column[first:]


def _parts(
    data: bytes, start: int, stop: int, wanted: int, others: dict[int, tuple[int, int]], unread: list[Unread],
    whole: bool = False,
) -> Iterator[tuple[int, int]]:  # fmt: skip
    """(start, stop) of the fields `wanted` of a message; the last of each other goes into `others`.

    One that is cut off ends where the message ends, or is left `unread` if it has to be `whole`.
    """
    try:
        for number, wire, begin, end, _ in walk(data, start, stop):
            if wire == BYTES:
                if number == wanted:
                    yield begin, end
                else:
                    others[number] = begin, end
    except CutOff as error:
        if error.number == wanted and not whole:
            yield error.at, stop
        else:
            unread.append((str(error), error.at, stop))
    except WireError as error:
        unread.append((str(error), error.at, stop))


def _is_empty_request(data: bytes, start: int, stop: int) -> bool:
    """Whether there is nothing but resources and scopes without spans (an exporter may send that)."""
    try:
        return all((number, wire) == (1, BYTES) for number, wire, *_ in walk(data, start, stop))
    except WireError:
        return False


def _scope(found: Located, of_resource: dict[int, tuple[int, int]], of_scope: dict[int, tuple[int, int]]) -> int | None:
    """Which of `scopes`; None where too much was read already. A resource is read anew for each scope below it."""
    slices = (of_resource.get(1), of_resource.get(3), of_scope.get(1), of_scope.get(3))
    key = tuple(b"" if s is None else found.data[s[0] : s[1]] for s in slices)
    known = found._known.get(key)
    if known is None:
        found._read += sum(map(len, key))
        if found._read > _READ:
            return None
        known = found._known[key] = len(found.scopes)
        found.scopes.append(read_scope(*key))
    return known
