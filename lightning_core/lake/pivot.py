"""Attributes → the columns that `sql/ingest/attribute_aliases.sql` names, and a map of the rest.

Of the keys of a column that a span has, the one with the lowest rank whose value can be read as the column's type wins.
One that loses stays in `attributes`, unless it says the same; so does a value that cannot be read, and every key that no
column knows. Of a key sent twice the last counts; the others are listed under `otlp.duplicate_attributes`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from lightning_core.lake import number_arrays, sql
from lightning_core.lake.any_value import ARRAY, BOOL, DOUBLE, INT, RAW, STRING, Broken
from lightning_core.lake.attributes import Attributes, BrokenSpans
from lightning_core.lake.wire import Bools, Ints

_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,19}\s*", re.ASCII)
_NUMBER = re.compile(
    r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*|[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE
)
_ARRAYS = {"int32s": np.int32, "float32s": np.float32}
# Up to so many (span, key) pairs, a table of all of them finds duplicates faster than sorting does.
_TABLE = 1 << 25
_AT_ONCE = 1 << 16  # duplicates that become Python's numbers together
_TINY = 16  # bytes of a value, up to which what was made of it is kept for the next like it
_MAX_DUPLICATES = 10_000  # of a span: listing more would cost many times what they cost to send


@dataclass(frozen=True)
class Alias:
    column: str
    rank: int
    type: str


@cache
def aliases() -> dict[str, Alias]:
    """Attribute key → column, as `sql/ingest/attribute_aliases.sql` says."""
    with duckdb.connect() as con:
        rows = con.execute(sql.text("ingest/attribute_aliases")).fetchall()
    return {key: Alias(column, rank, kind) for key, column, rank, kind in rows}


@dataclass
class Pivoted:
    """Columns of `spans` spans: texts as (start, length), numbers as Arrow arrays."""

    texts: dict[str, tuple[Ints, Ints]]
    arrays: dict[str, pa.Array]
    rest: Ints  # the attributes that stay, by span and then as sent


def pivot(sent: Attributes, spans: int) -> Pivoted:
    """The columns of these attributes. Raises BrokenSpans, once for all that are broken."""
    kept = np.ones(len(sent.span), np.bool_)
    _drop_duplicates(sent, spans, kept)
    order = np.argsort(sent.key.astype(np.uint16) if len(sent.keys) < 1 << 16 else sent.key, kind="stable")
    bounds = np.searchsorted(sent.key[order], np.arange(len(sent.keys) + 1))
    by_column: dict[str, list[tuple[int, str, int]]] = {}
    for code, key in enumerate(sent.keys):
        if (alias := aliases().get(key)) is not None:
            by_column.setdefault(alias.column, []).append((alias.rank, key, code))
    result = Pivoted({}, {}, np.empty(0, np.int64))
    for column in sorted(by_column):
        found = sorted(by_column[column], reverse=True)  # the lowest rank last
        rows = np.concatenate([order[bounds[code] : bounds[code + 1]] for _, _, code in found])
        rows = rows[kept[rows]]
        kind = aliases()[found[0][1]].type
        if kind == "text":
            rows = rows[sent.kind[rows] != 0]
            sent.make_texts(rows)
            values: Any = None
        else:
            values, readable = _arrays(sent, rows, _ARRAYS[kind]) if kind in _ARRAYS else _numbers(sent, rows, kind)
            rows, values = rows[readable], _take(values, readable)
        winner = np.full(spans, -1, np.int64)
        winner[sent.span[rows]] = np.arange(len(rows))  # of a span's the last is written
        has = winner >= 0
        if kind == "text":
            start, length = np.zeros(spans, np.int64), np.full(spans, -1, np.int64)
            start[has], length[has] = sent.start[rows[winner[has]]], sent.length[rows[winner[has]]]
            result.texts[column] = start, length
        else:
            result.arrays[column] = _column(values, winner, kind)
        if column == "agent_name":
            result.texts["agent_name_source"] = _source(sent, rows, winner)
        kept[rows[winner[has]]] = False
        losers = np.flatnonzero(winner[sent.span[rows]] != np.arange(len(rows)))
        best = winner[sent.span[rows[losers]]]
        if kind == "text":
            same = sent.same_text(rows[losers], rows[best])
        else:
            same = np.array([np.array_equal(values[a], values[b]) for a, b in zip(losers, best, strict=True)], np.bool_)
        kept[rows[losers[same]]] = False
    result.rest = np.flatnonzero(kept)
    sent.make_texts(result.rest)
    if sent.broken:
        raise BrokenSpans(sent.broken)
    return result


def _drop_duplicates(sent: Attributes, spans: int, kept: Bools) -> None:
    """Of a key sent twice in a span keep the last, and note the others."""
    pair = sent.span * len(sent.keys) + sent.key
    if spans * len(sent.keys) <= _TABLE:
        last = np.empty(spans * len(sent.keys), np.int32)
        last[pair] = np.arange(len(pair))
        again = np.flatnonzero(last[pair] != np.arange(len(pair)))
    else:
        order = np.argsort(pair, kind="stable")
        again = np.sort(order[:-1][pair[order[:-1]] == pair[order[1:]]])
    kept[again] = False
    too_many = np.flatnonzero(np.bincount(sent.span[again], minlength=1) > _MAX_DUPLICATES)
    sent.broken |= {i: f"more than {_MAX_DUPLICATES} attributes come twice" for i in too_many.tolist()}
    again = again[~np.isin(sent.span[again], too_many)]
    known: dict[tuple[int, bytes], dict[str, Any]] = {}
    for first in range(0, len(again), _AT_ONCE):
        some = again[first : first + _AT_ONCE]
        columns = (c[some].tolist() for c in (sent.span, sent.key, sent.any_begin, sent.any_end))
        for i, span, key, begin, end in zip(some.tolist(), *columns, strict=True):
            raw = sent.data[begin:end] if end - begin <= _TINY else None
            entry = known.get((key, raw)) if raw is not None else None
            if entry is None:
                lost = Broken()
                text = sent.text(i, lost)
                entry = {"key": sent.keys[key], "value": None if text is None else text.decode()}
                if sent.kind[i] != STRING:  # those of strings are noted
                    sent.notes.add(span, "otlp.invalid_utf8", *lost.texts)
                if raw is not None and not lost.texts and span not in sent.broken and len(known) < _AT_ONCE:
                    known[key, raw] = entry
            sent.notes.add(span, "otlp.duplicate_attributes", entry)


def _numbers(sent: Attributes, rows: Ints, kind: str) -> tuple[Any, Bools]:
    """(values, which could be read) as int64 or float64."""
    kinds, raw = sent.kind[rows], sent.value[rows]
    integral, double = (kinds == INT) | (kinds == BOOL), kinds == DOUBLE
    if kind == "int":
        values = np.where(kinds == BOOL, raw != 0, raw.view(np.int64)).astype(np.int64)
        doubles = np.where(double, raw.view(np.float64), 0.0)
        whole = double & (np.abs(doubles) < 2.0**63) & (np.trunc(doubles) == doubles)
        values[whole] = doubles[whole].astype(np.int64)
        readable = integral | whole
    else:
        values = np.where(
            double, raw.view(np.float64), np.where(kinds == BOOL, raw != 0, raw.view(np.int64)).astype(np.float64)
        )
        readable = integral | double
    for i in np.flatnonzero(kinds == STRING).tolist():
        text = (sent.text(rows[i]) or b"").decode()
        if kind == "int" and _INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63:
            values[i], readable[i] = int(text), True
        elif kind == "float" and _NUMBER.fullmatch(text):
            values[i], readable[i] = float(text), True
    return values, readable


def _arrays(sent: Attributes, rows: Ints, kind: type) -> tuple[list[Any], Bools]:
    """(arrays, which could be read) as int32 or float32."""
    found: list[Any] = [None] * len(rows)
    kinds, begin, end = sent.kind[rows], sent.begin[rows], sent.end[rows]
    for i in np.flatnonzero(kinds == RAW).tolist():
        found[i] = number_arrays.from_bytes(sent.data, int(begin[i]), int(end[i]), kind)
    for i in np.flatnonzero(kinds == STRING).tolist():
        found[i] = number_arrays.from_json(sent.data[begin[i] : end[i]], kind)
    some = np.flatnonzero(kinds == ARRAY)
    arrays = number_arrays.from_array_values(sent.data, sent.view, begin[some], end[some], kind)
    for i, numbers in zip(some.tolist(), arrays, strict=True):
        found[i] = numbers
    return found, np.array([f is not None for f in found], np.bool_)


def _take(values: Any, readable: Bools) -> Any:
    return values[readable] if isinstance(values, np.ndarray) else [v for v in values if v is not None]


def _column(values: Any, winner: Ints, kind: str) -> pa.Array:
    has = winner >= 0
    if isinstance(values, np.ndarray):
        column = np.zeros(len(winner), values.dtype)
        column[has] = values[winner[has]]
        return pa.array(column, mask=~has)
    won = [values[i] for i in winner[has].tolist()]
    length = np.zeros(len(winner), np.int32)
    length[has] = [len(v) for v in won]
    flat = np.concatenate([np.empty(0, _ARRAYS[kind]), *won])
    offsets = pa.array(np.append(0, np.cumsum(length)).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(flat), mask=pa.array(~has))


def _source(sent: Attributes, rows: Ints, winner: Ints) -> tuple[Ints, Ints]:
    """For each span the key that won."""
    starts, lengths = sent.texts.add([key.encode() for key in sent.keys])
    code = sent.key[rows[winner]] if len(rows) else np.zeros(len(winner), np.int64)
    return starts[code], np.where(winner >= 0, lengths[code], -1)
