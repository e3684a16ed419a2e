"""Arrays of numbers in attributes, token ids and logprobs: from ArrayValues, from bytes, from JSON text.

An ArrayValue of integers is `0a L 18 varint` for each, one of doubles `0a 09 21` and eight bytes. numpy decodes many such
arrays together, in nanoseconds a number where a loop takes a microsecond. Arrays of another make (mixed, or integers of
more than 35 bits) are read one by one.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from lightning_core.lake.any_value import Broken, plain
from lightning_core.lake.wire import BYTES, Bools, Ints, WireError, walk

_AT_ONCE = 1 << 18  # bytes of arrays decoded together: they stay in the cache
_LITTLE_ENDIAN: dict[type, Any] = {np.int32: np.dtype("<i4"), np.float32: np.dtype("<f4")}
# An element of length L (tag and varint) as a little-endian number: the bits that are fixed and what they have to be, for
# varints of up to five bytes, and the bits of the varint. For other lengths nothing fits.
_SIZES = [n - 1 if 2 <= n <= 6 else 0 for n in range(256)]
_CONTINUED = [0x8080808080 & (1 << 8 * max(size - 1, 0)) - 1 for size in _SIZES]
_FIXED = np.array([0xFFFFFF | (0x8080808080 & (1 << 8 * size) - 1) << 24 if size else 0 for size in _SIZES], np.uint64)
_EXPECTED = np.array(
    [0x18000A | n << 8 | _CONTINUED[n] << 24 if size else 1 for n, size in enumerate(_SIZES)], np.uint64
)
_VARINT = np.array([(1 << 8 * size) - 1 for size in _SIZES], np.uint64)


Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]


def from_bytes(data: bytes, start: int, stop: int, kind: type) -> Array | None:
    """Little-endian numbers of four bytes; None where the length fits none."""
    return None if (stop - start) % 4 else np.frombuffer(data, _LITTLE_ENDIAN[kind], (stop - start) // 4, start)


def from_json(text: bytes, kind: type) -> Array | None:
    """Numbers of a JSON list; None where it is none, or holds anything else."""
    try:
        numbers = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return _of_list(numbers, kind) if isinstance(numbers, list) else None


def from_array_values(data: bytes, view: Bytes, start: Ints, stop: Ints, kind: type) -> list[Array | None]:
    """The ArrayValues data[start:stop] as int32 or float32; None where one holds anything else."""
    found = integers(view, start, stop, np.int32) if kind is np.int32 else doubles(view, start, stop)
    for i in [i for i, numbers in enumerate(found) if numbers is None]:  # mixed, or no numbers
        try:
            found[i] = _of_list(_items(data, int(start[i]), int(stop[i])), kind)
        except WireError:
            found[i] = None
    return found


def integers(view: Bytes, start: Ints, stop: Ints, kind: type = np.int64) -> list[Array | None]:
    """Each ArrayValue that holds nothing but integers of this kind; None for another."""
    return [numbers for part in _parts(start, stop) for numbers in _integers(view, start[part], stop[part], kind)]


def doubles(view: Bytes, start: Ints, stop: Ints) -> list[Array | None]:
    """Each ArrayValue that holds nothing but doubles, as float32; None for another, and where one does not fit."""
    return [numbers for part in _parts(start, stop) for numbers in _doubles(view, start[part], stop[part])]


def _doubles(view: Bytes, start: Ints, stop: Ints) -> list[Array | None]:
    size = stop - start
    possible = size % 11 == 0
    if not possible.all():
        return _only(possible, _doubles, view, start, stop)
    element = np.concatenate([view[b:e] for b, e in zip(start.tolist(), stop.tolist(), strict=True)]).reshape(-1, 11)
    number = np.ascontiguousarray(element[:, 3:]).view("<f8")[:, 0]
    with np.errstate(over="ignore"):
        single = number.astype(np.float32)
    sound = (element[:, 0] == 0x0A) & (element[:, 1] == 0x09) & (element[:, 2] == 0x21)
    sound &= np.isinf(single) == np.isinf(number)
    return _split(single, sound, np.cumsum(size // 11))


def _split(numbers: Array, sound: Bools, ends: Ints) -> list[Array | None]:
    """Arrays that end at `ends`; None for one in which not all is sound."""
    arrays: list[Array | None] = [numbers[a:b] for a, b in pairwise([0, *ends.tolist()])]
    for bad in np.unique(np.searchsorted(ends, np.flatnonzero(~sound), side="right")).tolist():
        arrays[bad] = None
    return arrays


def _only(
    possible: Bools, read: Callable[..., list[Array | None]], view: Bytes, start: Ints, stop: Ints, *more: Any
) -> Any:
    """`read` of the arrays that are `possible`; None for the others."""
    some = np.flatnonzero(possible)
    result: list[Array | None] = [None] * len(start)
    if len(some):
        for i, numbers in zip(some.tolist(), read(view, start[some], stop[some], *more), strict=True):
            result[i] = numbers
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
    end = np.cumsum(stop - start)
    # Where an array of integers has these two bytes there is an element; of other arrays some check below fails.
    begin = np.flatnonzero((raw[:-10] == 0x0A) & (raw[2:-8] == 0x18))
    length = raw[begin + 1]
    element = np.ndarray((len(raw) - 7,), "<u8", raw, strides=(1,)).take(begin)
    sound = (element & _FIXED.take(length)) == _EXPECTED.take(length)
    last = np.searchsorted(begin, end)  # elements up to the end of each array
    filled = np.diff(last, prepend=0) > 0
    following = np.append(begin[1:], 0)
    following[last[filled] - 1] = end[filled]
    sound &= begin + length + 2 == following
    value = (element >> np.uint64(24)) & _VARINT.take(length)
    number = value & np.uint64(0x7F)
    longest = int(length.max(initial=2)) - 1 if sound.all() else 5
    for place in range(1, longest):
        number |= (value >> np.uint64(place)) & np.uint64(0x7F << 7 * place)
    if 7 * longest > 31:
        sound &= number <= np.uint64(np.iinfo(kind).max)
    arrays = _split(number.astype(kind), sound, last)
    opens = np.append(begin, -1)[np.append(0, last[:-1])]
    whole = np.where(filled, opens == end - (stop - start), stop == start)
    return [numbers if ok else None for numbers, ok in zip(arrays, whole.tolist(), strict=True)]


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
        return _singles(numbers) if kinds <= {int, float} else None
    except OverflowError:
        return None


def _singles(numbers: list[float]) -> Array | None:
    single = np.frombuffer(array("f", numbers), np.float32)
    infinite = np.isinf(single)
    return None if infinite.any() and not np.array_equal(infinite, np.isinf(np.array(numbers, np.float64))) else single


_NAMES = {str(x) for x in (math.nan, math.inf, -math.inf)}  # how `plain` gives what JSON cannot
