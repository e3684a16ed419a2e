"""OTLP's AnyValue as plain values and as the text an attribute has in the lake.

Text: strings as they are; numbers, booleans, arrays and maps as JSON; bytes in hex; `nan`, `inf`, `-inf` by name, as JSON
has none; no value is NULL. A map with a key twice is a list of `{"key", "value"}`, since an object would lose one.
What has no plain form is an object with one key: `otlp.too_deep` and `otlp.unknown` (bytes in hex), or
`otlp.string_value_strindex`.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import orjson

from lightning_core.lake.wire import BYTES, FIXED64, VARINT, WireError, walk

# Field numbers of AnyValue's kinds.
STRING, BOOL, INT, DOUBLE, ARRAY, MAP, RAW, STRINDEX = range(1, 9)
# The wire type each must have; a field with another one is unknown, as in any protobuf reader.
WIRE = {
    STRING: BYTES,
    BOOL: VARINT,
    INT: VARINT,
    DOUBLE: FIXED64,
    ARRAY: BYTES,
    MAP: BYTES,
    RAW: BYTES,
    STRINDEX: VARINT,
}
# Of arrays and maps in one another; what lies deeper is kept as bytes. A map with a key twice is two levels of JSON, and
# orjson writes 254.
_MAX_DEPTH = 120
_MOST_VALUES = 1 << 18  # in one value: two bytes on the wire are a hundred times that in Python
_DOUBLE = struct.Struct("<d")


class Broken:
    """Collects the bytes of texts that are no UTF-8, in hex: what replacement characters stand for. Counts values."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.values = 0

    def count(self, at: int) -> None:
        """One value more; raises WireError where it is one too many."""
        self.values += 1
        if self.values > _MOST_VALUES:
            raise WireError(f"more than {_MOST_VALUES} values are in one", at)

    def decode(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.texts.append(raw.hex())
            return raw.decode(errors="replace")


def text(plain: Any) -> bytes | None:
    """A plain value as an attribute's text, in UTF-8. Raises WireError where orjson cannot write it."""
    if plain is None or isinstance(plain, str):
        return None if plain is None else plain.encode()
    try:
        return orjson.dumps(plain)
    except orjson.JSONEncodeError as error:
        raise WireError(f"a value has no JSON: {error}", 0) from None


def plain(data: bytes, start: int, stop: int, broken: Broken, depth: int = 0) -> Any:
    """The AnyValue data[start:stop]; raises WireError. Of several kinds the last counts, as protobuf has it."""
    broken.count(start)
    if depth > _MAX_DEPTH:
        return {"otlp.too_deep": data[start:stop].hex()}
    kind = begin = end = value = 0
    for number, wire, *field in walk(data, start, stop):
        if WIRE.get(number) == wire:
            kind, (begin, end, value) = number, field
    if kind == STRING:
        return broken.decode(data[begin:end])
    if kind == INT:
        return value - (1 << 64) if value >> 63 else value
    if kind == DOUBLE:
        double = _DOUBLE.unpack_from(data, begin)[0]
        return double if math.isfinite(double) else str(double)
    if kind == BOOL:
        return value != 0
    if kind == ARRAY:
        return [
            plain(data, b, e, broken, depth + 1)
            for number, wire, b, e, _ in walk(data, begin, end)
            if (number, wire) == (1, BYTES)
        ]
    if kind == MAP:
        return joined(
            [
                key_value(data, b, e, broken, depth + 1)
                for number, wire, b, e, _ in walk(data, begin, end)
                if (number, wire) == (1, BYTES)
            ]
        )
    if kind == RAW:
        return data[begin:end].hex()
    if kind == STRINDEX:
        return {"otlp.string_value_strindex": value & 0xFFFFFFFF}
    return {"otlp.unknown": data[start:stop].hex()} if stop > start else None


def key_value(data: bytes, start: int, stop: int, broken: Broken, depth: int = 0) -> tuple[str, Any]:
    """(key, plain value) of the KeyValue data[start:stop]; raises WireError."""
    broken.count(start)
    key, value, index = "", None, 0
    for number, wire, begin, end, n in walk(data, start, stop):
        if (number, wire) == (1, BYTES):
            key = broken.decode(data[begin:end])
        elif (number, wire) == (2, BYTES):
            value = plain(data, begin, end, broken, depth)
        elif (number, wire) == (3, VARINT):
            index = n & 0xFFFFFFFF
    return key or strindex_key(index), value


def strindex_key(index: int) -> str:
    """The key of an attribute that names it by index only: such a table exists for profiles, not for traces."""
    return f"otlp.key_strindex.{index}" if index else ""


def joined(items: list[tuple[str, Any]]) -> Any:
    """Keys and values as an object, or as a list of objects where a key comes twice."""
    result = dict(items)
    return result if len(result) == len(items) else [{"key": key, "value": value} for key, value in items]


def texts(items: list[tuple[str, Any]]) -> Any:
    """Like `joined`, with each value as its text; raises WireError."""
    return joined([(key, None if raw is None else raw.decode()) for key, raw in ((k, text(v)) for k, v in items)])
