"""The protobuf wire format, read field by field: how many fields there are, and why protobuf refuses a message.

The standard library alone: an agent reads a gateway's answers with it.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """A message that is broken."""


def walk(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, wire type, start, stop) of each field of the message data[at:end]; raises WireError.

    start and stop are those of the content. What was yielded before an error is sound. Groups are errors: no OTLP
    message has one.
    """
    while at < end:
        tag, start = data[at], at + 1
        if tag >= 0x80:
            tag, start = varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise WireError(f"no field can have number {number}")
        if wire == BYTES:
            length, start = varint(data, start, end)
            at = start + length
            if at > end:
                raise WireError(f"field {number} is longer than the message that holds it")
        elif wire == VARINT:
            _, at = varint(data, start, end)
        elif wire in (FIXED64, FIXED32):
            at = start + (8 if wire == FIXED64 else 4)
            if at > end:
                raise WireError(f"field {number} is cut off")
        else:
            raise WireError(f"field {number} has wire type {wire}")
        yield number, wire, start, at


def varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return (value modulo 2^64, position behind it) of the number at `at`; raises WireError."""
    value = shift = 0
    for position in range(at, min(end, at + 10)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + 1
        shift += 7
    raise WireError("a number does not end")
