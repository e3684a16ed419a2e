"""OTLP's AnyValue as plain values and as the text an attribute has in the lake.

Text: strings as they are; numbers, booleans, arrays and maps as JSON; bytes in hex; `nan`, `inf`, `-inf` by name, as JSON
has none; no value is NULL. A map with a key twice is a list of `{"key", "value"}`, since an object would lose one.
What has no plain form is an object with one key: `otlp.too_deep` and `otlp.unknown` (bytes in hex), or
`otlp.string_value_strindex`.

Token ids and logprobs come as bytes, as arrays or as JSON text: `int32s` and `float32s` read each.
"""

from __future__ import annotations

import contextlib
import math
import re
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from lightning_core.otlp.messages import ArrayValue, Elements, KeyValueList, Numbers, parse
from lightning_core.otlp.wire import WireError

# Of arrays and maps in one another; what lies deeper is kept as bytes. A map with a key twice is two levels of JSON, and
# orjson writes 254.
_MAX_DEPTH = 120
_MOST_VALUES = 1 << 18  # in one value: two bytes on the wire are a hundred times that in Python
_LONG, _LONGEST = 64, 8 << 20  # bytes of an array: from which, and up to which, it is tried as one list of numbers
_INTEGER = re.compile(rb"\s*[+-]?[0-9]{1,19}\s*")
_NUMBER = re.compile(rb"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_NAMES = {str(x) for x in (math.nan, math.inf, -math.inf)}  # how `plain` gives what JSON cannot


class Seen:
    """Of a span, or of one value: the texts that were no UTF-8, as bytes in hex, and how many values there were."""

    def __init__(self) -> None:
        self.invalid: list[str] = []
        self.values = 0

    def count(self) -> None:
        """Count one value more; raises WireError where it is one too many."""
        self.values += 1
        if self.values > _MOST_VALUES:
            raise WireError(f"more than {_MOST_VALUES} values are in one")

    def decode(self, raw: bytes) -> str:
        """Decode a text; replacement characters stand for what is no UTF-8."""
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.invalid.append(raw.hex())
            return raw.decode(errors="replace")


def text(value: Any, seen: Seen) -> bytes | None:
    """Return the text of an AnyValue, in UTF-8; raises WireError."""
    kind = value.WhichOneof("value")
    if kind == "int_value":
        return b"%d" % value.int_value
    if kind == "bool_value":
        return b"true" if value.bool_value else b"false"
    if kind == "string_value":
        raw: bytes = value.string_value
        return raw if raw.isascii() else seen.decode(raw).encode()
    seen.values = 0
    return as_text(plain(value, seen))


def as_text(found: Any) -> bytes | None:
    """Return a plain value as text, in UTF-8; raises WireError where it has no JSON."""
    if found is None or isinstance(found, str):
        return None if found is None else found.encode()
    try:
        return orjson.dumps(found)
    except orjson.JSONEncodeError as error:
        raise WireError(f"a value has no JSON: {error}") from None


def plain(value: Any, seen: Seen, depth: int = 0) -> Any:
    """Return an AnyValue as what JSON knows; raises WireError."""
    seen.count()
    if depth > _MAX_DEPTH:
        return {"otlp.too_deep": value.SerializeToString().hex()}
    kind = value.WhichOneof("value")
    if kind is None:
        unknown = value.SerializeToString()
        return {"otlp.unknown": unknown.hex()} if unknown else None
    found = getattr(value, kind)
    if kind == "string_value":
        return seen.decode(found)
    if kind == "double_value":
        return found if math.isfinite(found) else str(found)
    if kind == "array_value":
        return elements(found, seen, depth + 1)
    if kind == "kvlist_value":
        return joined(pairs(parse(KeyValueList, found, _MOST_VALUES).values, seen, depth + 1))
    if kind == "bytes_value":
        return found.hex()
    return {"otlp.string_value_strindex": found} if kind == "string_value_strindex" else found


def pairs(sent: Iterable[Any], seen: Seen, depth: int = 0) -> list[tuple[str, Any]]:
    """Return (key, plain value) of KeyValues; raises WireError."""
    found = []
    for pair in sent:
        seen.count()
        found.append((key_of(pair, seen), plain(pair.value, seen, depth) if pair.HasField("value") else None))
    return found


def key_of(pair: Any, seen: Seen) -> str:
    """Return the key of a KeyValue.

    A key that is only a number becomes a name with it: the table of such keys exists for profiles, not for traces.
    """
    return seen.decode(pair.key) or (f"otlp.key_strindex.{pair.key_strindex}" if pair.key_strindex else "")


def joined(items: list[tuple[str, Any]]) -> Any:
    """Return keys and values as an object, or as a list of objects where a key comes twice."""
    found = dict(items)
    return found if len(found) == len(items) else [{"key": key, "value": value} for key, value in items]


def texts(sent: Iterable[Any], seen: Seen) -> list[tuple[str, str | None]]:
    """Return (key, text) of KeyValues; raises WireError."""
    return [(key, None if (raw := as_text(found)) is None else raw.decode()) for key, found in pairs(sent, seen)]


def integer(value: Any) -> int | None:
    """Return the int64 of an integer, a whole double, a boolean, or digits; None for another value."""
    kind = value.WhichOneof("value")
    if kind == "int_value":
        return int(value.int_value)
    found: Any = None
    if kind == "string_value" and _INTEGER.fullmatch(value.string_value):
        found = int(value.string_value)
    elif kind == "bool_value":
        found = int(value.bool_value)
    elif kind == "double_value" and value.double_value.is_integer():
        found = int(value.double_value)
    return found if found is not None and -(2**63) <= found < 2**63 else None


def number(value: Any) -> float | None:
    """Return the double of a number, a boolean, or a decimal number as text; None for another value."""
    kind = value.WhichOneof("value")
    if kind in ("double_value", "int_value", "bool_value"):
        return float(getattr(value, kind))
    return float(value.string_value) if kind == "string_value" and _NUMBER.fullmatch(value.string_value) else None


def int32s(value: Any) -> bytes | None:
    """Return token ids, as int32 one after another; None for what is no list of integers that fit."""
    return _list(value, np.int32)


def float32s(value: Any) -> bytes | None:
    """Return logprobs, as float32 one after another; integers may be among them."""
    return _list(value, np.float32)


def _list(value: Any, kind: type) -> bytes | None:
    which, found = value.WhichOneof("value"), None
    if which == "bytes_value":
        return None if len(value.bytes_value) % 4 else value.bytes_value
    if which == "array_value":
        found = numbers(value.array_value) or _wide(elements(value.array_value, Seen()))
    elif which == "string_value":
        with contextlib.suppress(orjson.JSONDecodeError):
            found = _wide(orjson.loads(value.string_value))
    if found is None or (kind is np.int32 and found.typecode != "q"):
        return None
    sent = np.array(found)
    with np.errstate(over="ignore"):
        made: npt.NDArray[Any] = sent.astype(kind)
    lost = made != sent if kind is np.int32 else np.isinf(made) != np.isinf(sent)
    return None if lost.any() else made.tobytes()


def _wide(found: Any) -> array[Any] | None:
    """Return numbers with all their bits; None for what is no list of numbers."""
    kinds: set[type] = set(map(type, found)) if isinstance(found, list) else {list}
    if str in kinds and all(n in _NAMES for n in found if type(n) is str):
        found, kinds = [float(n) for n in found], {float}
    if not kinds <= {int, float}:
        return None
    try:
        return array("d" if float in kinds else "q", found)
    except OverflowError:
        return array("d", found)


def elements(raw: bytes, seen: Seen, depth: int = 0) -> list[Any]:
    """Return the elements of an ArrayValue, as `plain` gives them; raises WireError."""
    if len(raw) >= _LONG and (found := numbers(raw)):
        return [n if math.isfinite(n) else str(n) for n in found] if found.typecode == "d" else found.tolist()
    return [plain(item, seen, depth) for item in parse(ArrayValue, raw, _MOST_VALUES).values]


def numbers(raw: bytes) -> array[Any] | None:
    """Return an ArrayValue of nothing but integers, or of nothing but doubles, as an array; None for another.

    Elements one after another are one message, so that thousands of numbers are parsed as one list.
    """
    if len(raw) > _LONGEST:
        return None
    try:
        sent = Elements.FromString(raw).values[:]  # a slice is read faster than what it is of
        found = Numbers.FromString(b"".join(sent))
    except DecodeError:
        return None
    # Each element has a field at least; if there are no more numbers than elements, and nothing else, each has one.
    if b"" in sent or len(UnknownFieldSet(found)) or len(found.integers) + len(found.doubles) != len(sent):
        return None
    if found.integers and found.doubles:
        return None
    return array("d", found.doubles[:]) if found.doubles else array("q", found.integers[:])
