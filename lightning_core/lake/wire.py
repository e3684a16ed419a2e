"""The protobuf wire format, read without a schema and without copying: fields as positions in one buffer.

`walk` reads one message in Python. `fields` reads thousands at once in numpy, a field of every message a turn, which
costs nanoseconds a field where a parser that makes objects costs microseconds. Neither knows a recursion limit, and a
message that is broken says so alone: its neighbours are read as if it were not there.

Groups (wire types 3 and 4) count as broken: no OTLP message has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
PAD = 32  # zero bytes behind the last message, so that reads in numpy need no bounds check
_AT_ONCE = 16384  # messages of one lockstep: their positions stay in the cache, and 16 bits sort in linear time
_TOO_FEW = 24  # messages left of a lockstep, below which a turn of numpy costs more than Python
_MOST_FIELDS = 1 << 17  # of one message: a field of two bytes takes many times that
# Of a field: number, wire type, start, stop, value.
_TYPES: tuple[type, ...] = (np.int32, np.uint8, np.int64, np.int64, np.uint64)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class WireError(ValueError):
    """A message that is broken: `at` is where."""

    def __init__(self, reason: str, at: int) -> None:
        super().__init__(reason)
        self.at = at


class CutOff(WireError):
    """Field `number` says it is longer than the message that holds it; its bytes begin at `at`."""

    def __init__(self, number: int, at: int) -> None:
        super().__init__(f"field {number} is longer than the message that holds it", at)
        self.number = number


def varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """(value modulo 2^64, position behind it); raises WireError."""
    value = shift = 0
    for position in range(at, min(end, at + 10)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + 1
        shift += 7
    raise WireError("a number does not end", at)


def walk(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(number, wire type, start, stop, value of a varint) of each field of the message data[at:end]; raises WireError.

    start and stop are those of the content. What was yielded before an error is sound.
    """
    value = 0
    while at < end:
        tag = data[at]
        start = at + 1
        if tag >= 0x80:
            tag, start = varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise WireError(f"no field can have number {number}", at)
        if kind == BYTES:
            if start < end and data[start] < 0x80:
                length, start = data[start], start + 1
            else:
                length, start = varint(data, start, end)
            at = start + length
            if at > end:
                raise CutOff(number, start)
        elif kind == VARINT:
            value, at = varint(data, start, end)
        elif kind in (FIXED64, FIXED32):
            at = start + (8 if kind == FIXED64 else 4)
            if at > end:
                raise WireError(f"field {number} is cut off", start)
        else:
            raise WireError(f"field {number} has wire type {kind}", at)
        yield number, kind, start, at, value


@dataclass(frozen=True)
class Fields:
    """Fields of many messages, one element a field, by message and then as sent."""

    message: Ints  # which of the messages
    number: npt.NDArray[np.int32]
    wire: npt.NDArray[np.uint8]
    start: Ints
    stop: Ints
    value: npt.NDArray[np.uint64]  # of varints

    def rows(self, number: int, wire: int) -> Ints:
        """Where the fields of this number and wire type are."""
        return np.flatnonzero((self.number == number) & (self.wire == wire))

    def last(self, number: int, wire: int, messages: int) -> Ints:
        """For each message the last such field, -1 where it has none: of fields that may occur once the last counts."""
        found = np.full(messages, -1, np.int64)
        rows = self.rows(number, wire)
        found[self.message[rows]] = rows
        return found


def fields(data: bytes, view: npt.NDArray[np.uint8], start: Ints, stop: Ints) -> tuple[Fields, dict[int, str]]:
    """The fields of the messages data[start:stop], and for each broken message the reason.

    view: data as an array, with PAD bytes behind the last message. A broken message's fields are left out.
    """
    blocks: list[tuple[Any, ...]] = []
    broken: dict[int, str] = {}
    for first in range(0, len(start), _AT_ONCE):
        block = slice(first, first + _AT_ONCE)
        blocks.append(_lockstep(data, view, start[block], stop[block], first, broken))
    columns: list[Any] = (
        [np.concatenate(c) for c in zip(*blocks, strict=True)] if blocks else [np.empty(0, np.int64)] * 6
    )
    found = Fields(*(c.astype(kind, copy=False) for c, kind in zip(columns, (np.int64, *_TYPES), strict=True)))
    if broken:
        bad = np.zeros(len(start), np.bool_)
        bad[list(broken)] = True
        sound = ~bad[found.message]
        found = Fields(*(getattr(found, name)[sound] for name in Fields.__dataclass_fields__))
    return found, broken


def _lockstep(
    data: bytes, view: npt.NDArray[np.uint8], start: Ints, stop: Ints, first: int, broken: dict[int, str]
) -> tuple[Any, ...]:
    turns: list[tuple[Any, ...]] = []
    live = np.flatnonzero(start < stop)
    at, end = start[live], stop[live]
    while len(live) >= _TOO_FEW and len(turns) < _MOST_FIELDS:
        tag, content, sound = _varints(view, at)
        number, wire = tag >> np.uint64(3), (tag & np.uint64(7)).astype(np.uint8)
        number[number >= 1 << 29] = 0
        value, behind, whole = _varints(view, content)
        is_bytes, is_varint, is_64 = wire == BYTES, wire == VARINT, wire == FIXED64
        begin = np.where(is_bytes, behind, content)
        room = np.maximum(end - begin, 0).astype(np.uint64)
        length = np.where(is_bytes, value, np.where(is_64, np.uint64(8), np.uint64(4)))
        sound &= (whole | ~(is_bytes | is_varint)) & (is_bytes | is_varint | is_64 | (wire == FIXED32))
        sound &= (number > 0) & np.where(is_varint, behind <= end, length <= room)
        sound &= begin <= end
        if not sound.all():
            for lost in np.flatnonzero(~sound):
                broken[first + int(live[lost])] = _reason(data, int(at[lost]), int(end[lost]))
            live, end, number, wire = live[sound], end[sound], number[sound], wire[sound]
            begin, behind, value, length = begin[sound], behind[sound], value[sound], length[sound]
        at = np.where(wire == VARINT, behind, begin + length.astype(np.int64))
        turns.append((live, number.astype(np.int32), wire, begin, at, value))
        more = at < end
        if not more.all():
            live, at, end = live[more], at[more], end[more]
    for message, begin, until in zip(live.tolist(), at.tolist(), end.tolist(), strict=True):
        rest = islice(walk(data, begin, until), _MOST_FIELDS)
        try:
            while part := list(islice(rest, 1 << 16)):  # tuples are large
                columns = zip(*part, strict=True)
                turns.append(
                    (np.full(len(part), message), *(np.array(c, kind) for c, kind in zip(columns, _TYPES, strict=True)))
                )
            if turns and turns[-1][0][-1] == message and turns[-1][4][-1] < until:
                broken[first + message] = f"it has more than {_MOST_FIELDS} fields"
        except WireError as error:
            broken[first + message] = str(error)
    if not turns:
        return tuple(np.empty(0, np.int64) for _ in range(6))
    message, *others = (np.concatenate(c) for c in zip(*turns, strict=True))
    order = np.argsort(message.astype(np.uint16), kind="stable")
    return message[order] + first, *(c[order] for c in others)


def _reason(data: bytes, at: int, end: int) -> str:
    try:
        for _ in walk(data, at, end):
            pass
    except WireError as error:
        return str(error)
    return "it cannot be read"


def _varints(view: npt.NDArray[np.uint8], at: Ints) -> tuple[npt.NDArray[np.uint64], Ints, Bools]:
    """(values modulo 2^64, positions behind them, which of them end)."""
    value = view[at].astype(np.uint64)
    behind = at + 1
    sound = np.ones(len(at), np.bool_)
    more = np.flatnonzero(value >= 0x80)
    if len(more):
        value[more] &= np.uint64(0x7F)
        for place in range(1, 10):
            byte = view[at[more] + place].astype(np.uint64)
            value[more] |= (byte & np.uint64(0x7F)) << np.uint64(7 * place)
            behind[more] += 1
            more = more[byte >= 0x80]
            if not len(more):
                break
        sound[more] = False
    return value, behind, sound
