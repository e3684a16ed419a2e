"""Attributes of many spans as one long table: which span, which key, what kind of value, where it lies."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from lightning_core.lake import number_arrays
from lightning_core.lake.any_value import ARRAY, BOOL, DOUBLE, INT, STRING, WIRE, Broken, plain, strindex_key, text
from lightning_core.lake.texts import Texts, invalid
from lightning_core.lake.wire import BYTES, VARINT, Bools, Fields, Ints, WireError, fields

UNKNOWN = 9  # a kind of value that OTLP does not have (yet)
_WIRE = np.array([255, *(WIRE[kind] for kind in sorted(WIRE))], np.uint8)
_LONG_ARRAY = 64  # bytes of an ArrayValue from which numpy is worth it


class BrokenSpans(ValueError):
    """Spans that cannot be read whole: number of the span → reason."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(f"{len(reasons)} spans")
        self.reasons = reasons


@dataclass
class Notes:
    """What the decoder has to say of a span, as attributes named `otlp.*`."""

    of_span: dict[int, dict[str, Any]] = field(default_factory=dict)

    def set(self, span: int, key: str, value: str) -> None:
        self.of_span.setdefault(span, {})[key] = value

    def add(self, span: int, key: str, *values: Any) -> None:
        """Append to a list; it becomes JSON."""
        if values:
            self.of_span.setdefault(span, {}).setdefault(key, []).extend(values)


@dataclass
class Attributes:
    """One element an attribute, by span and then as sent."""

    data: bytes
    view: npt.NDArray[np.uint8]
    texts: Texts
    notes: Notes
    span: Ints
    key: Ints  # which of `keys`
    keys: list[str]
    any_begin: Ints  # the AnyValue
    any_end: Ints
    kind: npt.NDArray[np.uint8]  # its field number, 0 for no value
    begin: Ints  # the content of that field
    end: Ints
    value: npt.NDArray[np.uint64]  # of bool and int, and the bits of a double
    start: Ints  # the text, once `make_texts` has made it; strings have theirs from the beginning
    length: Ints
    # Spans with a value that is broken, found on the way, and why: raised together, since each raise is a pass more.
    broken: dict[int, str] = field(default_factory=dict)

    def text(self, i: int, lost: Broken | None = None) -> bytes | None:
        """The text of attribute i, in UTF-8; of a broken one None, and its span is in `broken`."""
        try:
            return text(plain(self.data, int(self.any_begin[i]), int(self.any_end[i]), lost or Broken()))
        except WireError as error:
            self.broken[int(self.span[i])] = str(error)
            return None

    def same_text(self, some: Ints, others: Ints) -> Bools:
        """Which of some attributes have the text of the other beside it."""
        same = self.length[some] == self.length[others]
        sent = (self.kind[some] == STRING) & (self.kind[others] == STRING)
        for i in np.flatnonzero(same).tolist():
            a, b = int(some[i]), int(others[i])
            if sent[i]:
                same[i] = self.data[self.begin[a] : self.end[a]] == self.data[self.begin[b] : self.end[b]]
            else:
                same[i] = self.text(a) == self.text(b)
        return same

    def make_texts(self, rows: Ints) -> None:
        """Set `start` and `length` of these attributes; spans with arrays or maps that are broken go into `broken`."""
        kinds = self.kind[rows]
        for kind in np.unique(kinds).tolist():
            if kind in (0, STRING):
                continue
            some = rows[kinds == kind]
            if kind in (BOOL, INT, DOUBLE):  # they repeat
                unique, which = np.unique(self.value[some], return_inverse=True)
                start, length = self.texts.add(_number_texts(kind, unique))
                self.start[some], self.length[some] = start[which], length[which]
            else:
                self.start[some], self.length[some] = self.texts.add(self._texts(kind, some))

    def _texts(self, kind: int, rows: Ints) -> list[bytes | None]:
        made: list[bytes | None] = []
        known: dict[bytes, bytes | None] = {}
        long_arrays = self._long_arrays(rows) if kind == ARRAY else {}
        for i, begin, end in zip(
            rows.tolist(), self.any_begin[rows].tolist(), self.any_end[rows].tolist(), strict=True
        ):
            if i in long_arrays:
                made.append(long_arrays[i])
                continue
            raw = self.data[begin:end]
            if raw not in known:
                lost = Broken()
                try:
                    known[raw] = text(plain(self.data, begin, end, lost))
                except WireError as error:
                    self.broken[int(self.span[i])] = str(error)
                    known[raw] = None
                if lost.texts:
                    self.notes.add(int(self.span[i]), "otlp.invalid_utf8", *lost.texts)
                    made.append(known.pop(raw))
                    continue
            elif known[raw] is None:
                self.broken[int(self.span[i])] = "a nested value is broken"
            made.append(known[raw])
        return made

    def _long_arrays(self, rows: Ints) -> dict[int, bytes]:
        rows = rows[self.end[rows] - self.begin[rows] >= _LONG_ARRAY]
        arrays = number_arrays.integers(self.view, self.begin[rows], self.end[rows])
        pairs = zip(rows.tolist(), arrays, strict=True)
        return {i: orjson.dumps(a, option=orjson.OPT_SERIALIZE_NUMPY) for i, a in pairs if a is not None}


def read_attributes(
    data: bytes, view: npt.NDArray[np.uint8], of_spans: Fields, number: int, texts: Texts, notes: Notes
) -> Attributes:
    """The attributes in field `number` of spans. Raises BrokenSpans."""
    rows = of_spans.rows(number, BYTES)
    span = of_spans.message[rows]
    pairs, broken = fields(data, view, of_spans.start[rows], of_spans.stop[rows])
    if broken:
        raise BrokenSpans({int(span[i]): f"an attribute is broken: {reason}" for i, reason in broken.items()})
    any_begin, any_end = content(pairs, pairs.last(2, BYTES, len(rows)))
    kinds, broken = fields(data, view, any_begin, any_end)
    if broken:
        raise BrokenSpans({int(span[i]): f"a value is broken: {reason}" for i, reason in broken.items()})
    known = np.flatnonzero(
        _WIRE[np.where((kinds.number > 0) & (kinds.number < UNKNOWN), kinds.number, 0)] == kinds.wire
    )
    of_value = np.full(len(rows), -1, np.int64)
    of_value[kinds.message[known]] = known
    found = of_value >= 0
    kind = (
        np.where(found, kinds.number[of_value], np.where(any_end > any_begin, UNKNOWN, 0))
        if len(kinds.number)
        else np.zeros(len(rows))
    )
    begin, end = content(kinds, of_value)
    value = (
        np.where(found, kinds.value[of_value], 0).astype(np.uint64)
        if len(kinds.number)
        else np.zeros(len(rows), np.uint64)
    )
    doubles = np.flatnonzero(kind == DOUBLE)
    value[doubles] = words(view, begin[doubles])
    key, keys = _keys(data, pairs, len(rows), of_spans.start[rows], span, notes)
    strings = kind == STRING
    result = Attributes(
        data=data, view=view, texts=texts, notes=notes, span=span, key=key, keys=keys, any_begin=any_begin, any_end=any_end,
        kind=kind.astype(np.uint8), begin=begin, end=end, value=value, start=begin.copy(),
        length=np.where(strings, end - begin, -1),
    )  # fmt: skip
    rows = np.flatnonzero(strings)
    bad = rows[invalid(data, begin[rows], end[rows] - begin[rows])]
    replaced = []
    for i in bad.tolist():
        raw = data[begin[i] : end[i]]
        notes.add(int(span[i]), "otlp.invalid_utf8", raw.hex())
        replaced.append(raw.decode(errors="replace").encode())
    result.start[bad], result.length[bad] = texts.add(replaced)
    return result


def words(view: npt.NDArray[np.uint8], start: Ints) -> npt.NDArray[np.uint64]:
    """The eight bytes at each position as a little-endian number."""
    return np.ndarray((len(view) - 7,), "<u8", view, strides=(1,))[start].astype(np.uint64)


def content(found: Fields, rows: Ints) -> tuple[Ints, Ints]:
    """(start, stop) of the fields in these rows; (0, 0) for row -1."""
    if not len(found.start):
        return np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    return np.where(rows >= 0, found.start[rows], 0), np.where(rows >= 0, found.stop[rows], 0)


def _keys(data: bytes, pairs: Fields, count: int, pair_start: Ints, span: Ints, notes: Notes) -> tuple[Ints, list[str]]:
    """For each KeyValue which key it has, and the keys."""
    rows = pairs.last(1, BYTES, count)
    start, stop = content(pairs, rows)
    start, stop = np.where(rows >= 0, start, pair_start), np.where(rows >= 0, stop, pair_start)
    # Keys and what is between them, in turn, are the elements of one Arrow array over the data: nothing is copied.
    offsets = np.stack([start, stop], 1).ravel().astype(np.int32)
    between = pa.Array.from_buffers(
        pa.binary(), max(2 * count - 1, 0), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    encoded = between.take(pa.array(np.arange(0, 2 * count, 2))).dictionary_encode() if count else None
    if encoded is None:
        return np.empty(0, np.int64), []
    key = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    names: dict[str, int] = {}
    code = np.empty(len(encoded.dictionary), np.int64)
    for i, raw in enumerate(encoded.dictionary.to_pylist()):
        lost = Broken()
        code[i] = names.setdefault(lost.decode(raw), len(names))
        for row in np.flatnonzero(key == i).tolist() if lost.texts else ():
            notes.add(int(span[row]), "otlp.invalid_utf8", *lost.texts)
    key = code[key]
    index = pairs.rows(3, VARINT)
    for row, value in zip(pairs.message[index].tolist(), pairs.value[index].tolist(), strict=True):
        if start[row] == stop[row]:
            name = strindex_key(value & 0xFFFFFFFF)
            key[row] = names.setdefault(name, len(names))
    return key, list(names)


def _number_texts(kind: int, values: npt.NDArray[np.uint64]) -> list[bytes | None]:
    if kind == BOOL:
        return [b"true" if v else b"false" for v in values.tolist()]
    if kind == INT:
        return [b"%d" % v for v in values.view(np.int64).tolist()]
    return [orjson.dumps(v) if math.isfinite(v) else str(v).encode() for v in values.view(np.float64).tolist()]
