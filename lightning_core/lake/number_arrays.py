"""Arrays of numbers in attributes, token ids and logprobs: from ArrayValues, from bytes, from JSON text.

An ArrayValue of integers is `0a L 18 varint` for each, so of an element exactly four bytes are below 0x80; one of doubles
is `0a 09 21` and eight bytes. So numpy decodes many arrays together, where a loop costs a microsecond a number. Arrays of
another make (mixed, or integers of more than 35 bits) are read one by one.
"""

from __future__ import annotations

import math
from array import array
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from lightning_core.lake.any_value import Broken, plain
from lightning_core.lake.wire import BYTES, Ints, WireError, walk

_AT_ONCE = 1 << 18  # bytes of arrays decoded together: they stay in the cache
_INT32 = np.iinfo(np.int32)
_MORE = np.uint64(0x8080808080)
# The bits of the varint in an element of length L (tag and varint), for varints of up to five bytes.
_VARINTS = np.array([(1 << 8 * (n - 1)) - 1 if 2 <= n <= 6 else 0 for n in range(256)], np.uint64)

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]


def from_bytes(data: bytes, start: int, stop: int, kind: type) -> Array | None:
    """Little-endian numbers of four bytes; None where the length fits none."""
    dtype = np.dtype(kind).newbyteorder("<")
    return None if (stop - start) % 4 else np.frombuffer(data, dtype, (stop - start) // 4, start).astype(kind)


def from_json(text: bytes, kind: type) -> Array | None:
    """Numbers of a JSON list; None where it is none, or holds anything else."""
    try:
        numbers = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return _of_list(numbers, kind) if isinstance(numbers, list) else None


def from_array_values(data: bytes, view: Bytes, start: Ints, stop: Ints, kind: type) -> list[Array | None]:
    """The ArrayValues data[start:stop] as int32 or float32; None where one holds anything else."""
    if kind is np.float32:
        found: list[Array | None] = doubles(view, start, stop)
        rest = [i for i, numbers in enumerate(found) if numbers is None]
        for i, numbers in zip(rest, integers(view, start[rest], stop[rest]), strict=True):
            found[i] = None if numbers is None else numbers.astype(np.float64)
    else:
        found = integers(view, start, stop, np.int32)
    result: list[Array | None] = []
    for i, numbers in enumerate(found):
        if numbers is None:  # mixed, or no numbers
            try:
                result.append(_of_list(_items(data, int(start[i]), int(stop[i])), kind))
            except WireError:
                result.append(None)
        else:
            result.append(numbers if kind is np.int32 else _singles(numbers))
    return result


def integers(view: Bytes, start: Ints, stop: Ints, kind: type = np.int64) -> list[Array | None]:
    """Each ArrayValue that holds nothing but integers of this kind; None for another."""
    result: list[Array | None] = []
    for part in _parts(start, stop):
        result.extend(_integers(view, start[part], stop[part], kind))
    return result


def doubles(view: Bytes, start: Ints, stop: Ints) -> list[Array | None]:
    """Each ArrayValue that holds nothing but doubles, as float64; None for another."""
    result: list[Array | None] = []
    for begin, end in zip(start.tolist(), stop.tolist(), strict=True):
        rows = view[begin:end]
        if len(rows) % 11:
            result.append(None)
            continue
        rows = rows.reshape(-1, 11)
        sound = bool((rows[:, :3] == (0x0A, 0x09, 0x21)).all())
        result.append(np.ascontiguousarray(rows[:, 3:]).view("<f8")[:, 0].astype(np.float64) if sound else None)
    return result


def _parts(start: Ints, stop: Ints) -> list[slice]:
    if not len(start):
        return []
    part = np.cumsum(stop - start) // _AT_ONCE
    bounds = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(start)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def _integers(view: Bytes, start: Ints, stop: Ints, kind: type) -> list[Array | None]:
    raw = np.concatenate(
        [*(view[b:e] for b, e in zip(start.tolist(), stop.tolist(), strict=True)), np.zeros(8, np.uint8)]
    )
    ends = np.cumsum(stop - start)
    is_low = raw[:-8] < 0x80
    low = np.array(
        [np.count_nonzero(is_low[e - n : e]) for e, n in zip(ends.tolist(), (stop - start).tolist(), strict=True)]
    )
    possible = low % 4 == 0
    if possible.all():
        # If these are integers, then the second low byte of each element is its length; all that follows checks it.
        length = raw[:-8][is_low][1::4]
        behind = np.cumsum(np.add(length, 2, dtype=np.int16), dtype=np.int64)
        first = np.cumsum(low // 4)
        possible = np.diff(np.append(0, behind)[first], prepend=0) == stop - start
    if not possible.all():
        some = np.flatnonzero(possible)
        result: list[Array | None] = [None] * len(start)
        for i, numbers in zip(
            some.tolist(), _integers(view, start[some], stop[some], kind) if len(some) else (), strict=True
        ):
            result[i] = numbers
        return result
    element = np.ndarray((len(raw) - 7,), "<u8", raw, strides=(1,))[behind - length - 2]
    mask = _VARINTS[length]
    value = (element >> np.uint64(24)) & mask
    sound = (element & np.uint64(0xFFFFFF)) == (length.astype(np.uint64) << np.uint64(8)) | np.uint64(0x18000A)
    sound &= (value & _MORE == (mask >> np.uint64(8)) & _MORE) & (mask > 0)
    number = value & np.uint64(0x7F)
    for place in range(1, int(length.max(initial=2)) - 1 if sound.all() else 5):
        number |= (value >> np.uint64(place)) & np.uint64(0x7F << 7 * place)
    sound &= number <= np.uint64(np.iinfo(kind).max)
    bounds = [0, *first.tolist()]
    narrow = number.astype(kind)
    arrays: list[Array | None] = [narrow[a:b] for a, b in pairwise(bounds)]
    for bad in np.unique(np.searchsorted(first, np.flatnonzero(~sound), side="right")).tolist():
        arrays[bad] = None
    return arrays


def _items(data: bytes, start: int, stop: int) -> list[Any]:
    broken = Broken()
    return [
        plain(data, b, e, broken) for number, wire, b, e, _ in walk(data, start, stop) if (number, wire) == (1, BYTES)
    ]


def _of_list(numbers: list[Any], kind: type) -> Array | None:
    kinds = set(map(type, numbers))
    if str in kinds and kind is np.float32 and all(n in _NAMES for n in numbers if type(n) is str):
        numbers, kinds = [float(n) for n in numbers], {float}
    try:
        if kind is np.int32:
            return np.frombuffer(array("i", numbers), np.int32) if kinds <= {int} else None
        return _singles(np.frombuffer(array("d", numbers), np.float64)) if kinds <= {int, float} else None
    except OverflowError:
        return None


def _singles(numbers: Array) -> Array | None:
    """float64 as float32; None where a number does not fit."""
    with np.errstate(over="ignore"):
        singles = numbers.astype(np.float32)
    return singles if np.array_equal(np.isinf(singles), np.isinf(numbers)) else None


_NAMES = {str(x) for x in (math.nan, math.inf, -math.inf)}  # how `plain` gives what JSON cannot
