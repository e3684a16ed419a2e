"""What a spool is made of: segments of raw OTLP requests, and how a record lies in them.

A segment is `<20-digit global byte offset of its first byte>.seg`; offsets count bytes over all segments, and a
segment begins where the one before it ends. A record is

    magic (4) | header length u32 | body length u32 | durable u64 | crc32 u32 | header (JSON) | body (protobuf)

little-endian; the crc covers everything but the magic and itself. `durable` is the offset that had been
acknowledged when the record was written. It tells a torn tail from damage: a record behind a bad one that knows the
bad one as acknowledged proves that kept data was lost. Of the last records the file `durable` proves it, which is written
when the writer is idle: offset u64 | crc32 u32. Without a proof a bad record was never acknowledged.

`spool.py` writes and reads them. Imports the standard library only.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from lightning_core.errors import LightningError

MAGIC = b"LFs1"
_FIXED = struct.Struct("<4sIIQI")
_CHECKED = struct.Struct("<IIQ")
# With a bit of MAGIC flipped it is one record's damage instead: sound ones follow, or its crc holds.
_OTHER_LAYOUT = re.compile(rb"LFs[2-9].{20}", re.DOTALL)
MAX_HEADER = 64 * 1024
DURABLE = "durable"
DAMAGED = "acknowledged, and damaged on the disk since"  # why it is rejected; sql/why/damaged_spool.sql asks for it
_DURABLE = struct.Struct("<QI")

Scope = Literal["path", "token", "none"]
# Who sent a request: the gateway itself, one who holds the gateway's secret (the runner, a grader, an importer), an attempt, or
# nobody that is known. `otlp`: a client of which that was not written down yet.
# `damaged`: no request but the bytes of one, or of several, that cannot be read back.
Source = Literal["gateway", "secret", "attempt", "nobody", "otlp", "damaged"]


class SpoolError(LightningError):
    """Something is wrong with the spool; the message names the file."""


class SpoolFull(SpoolError):
    """The bytes not yet decoded exceed the limit."""


class SpoolLocked(SpoolError):
    """Another process writes to this spool."""


class SpoolFreed(SpoolError):
    """Bytes that were asked for are gone."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request: `body` is always the protobuf encoding of an `ExportTraceServiceRequest`."""

    rollout_id: str | None
    attempt_id: str | None
    scope: Scope  # how the gateway knew the two: the URL path, the token, or not at all
    received_ns: int  # Unix time
    source: Source
    body: bytes


def encode_head(record: Record, durable: int) -> bytes:
    """Return what comes before the body of a record; `durable` is the offset acknowledged so far."""
    fields = [record.rollout_id, record.attempt_id, record.scope, record.received_ns, record.source]
    header = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    crc = _crc(header, record.body, durable)
    return _FIXED.pack(MAGIC, len(header), len(record.body), durable, crc) + header


def encoded_size(record: Record) -> int:
    """Return an upper bound of the bytes a record will take."""
    ids = len(record.rollout_id or "") + len(record.attempt_id or "")
    return _FIXED.size + len(record.body) + 6 * ids + 64


def _sound(data: bytes, at: int) -> tuple[int, int] | None:
    """Return (size, durable) of the record at position `at`; None where there is no whole, sound record."""
    size = _claimed_size(data, at)
    if not 0 < size <= len(data) - at:
        return None
    _, header_len, _, durable, crc = _FIXED.unpack_from(data, at)
    content = memoryview(data)[at + _FIXED.size : at + size]
    return (size, durable) if _crc(content[:header_len], content[header_len:], durable) == crc else None


def _crc(header: bytes | memoryview, body: bytes | memoryview, durable: int) -> int:
    checked = _CHECKED.pack(len(header), len(body), durable)
    return zlib.crc32(body, zlib.crc32(header, zlib.crc32(checked)))


def read_record(file: BinaryIO) -> tuple[int, Record] | None:
    """Return (size, record) of the record where `file` stands; None where there is no whole, sound record.

    Its body is read into the bytes it stays in: large buffers cost more to come by than to fill.
    """
    fixed = file.read(_FIXED.size)
    if len(fixed) < _FIXED.size:
        return None
    magic, header_len, body_len, durable, crc = _FIXED.unpack(fixed)
    if magic != MAGIC or header_len > MAX_HEADER:
        return None
    if file.tell() + header_len + body_len > os.fstat(file.fileno()).st_size:
        return None
    header, body = file.read(header_len), file.read(body_len)
    if _crc(header, body, durable) != crc:
        return None
    rollout_id, attempt_id, scope, received_ns, source = json.loads(header)
    return _FIXED.size + header_len + body_len, Record(rollout_id, attempt_id, scope, received_ns, source, body)


def segment_path(directory: Path, offset: int) -> Path:
    return directory / f"{offset:020d}.seg"


def segments(directory: Path | str) -> list[tuple[int, Path]]:
    """Return (offset of its first byte, path) of every segment, in order; empty where there is no spool."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = [(int(name[:20]), Path(directory) / name) for name in names if len(name) == 24 and name.endswith(".seg")]
    return sorted(found)


def sound_end(offset: int, data: bytes, durable: int) -> tuple[int, int]:
    """Return the position in `data` behind all that was acknowledged, and how many bytes before it are damaged.

    `data` is the last segment, which begins at `offset`.
    """
    at = damaged = 0
    while True:
        while (found := _sound(data, at)) is not None:
            at += found[0]
        goes_on = behind_damage(offset, data, durable, at)
        if goes_on is None:
            return at, damaged
        damaged += goes_on - at
        at = goes_on


def behind_damage(offset: int, data: bytes, durable: int, at: int, until: int | None = None) -> int | None:
    """Return where records go on behind the bad one at `at`; None where nothing shows that it had been acknowledged.

    `until`: where the segment ends that the next one follows; then all of it was acknowledged. Raises SpoolError for a
    record of another layout than this version knows.
    """
    acknowledged, first = (durable - offset if until is None else until), None
    for position, known in _sound_behind(data, at):
        first = position if first is None else first
        if acknowledged > at:
            break
        acknowledged = known - offset  # does it know the bad one as acknowledged?
    if first is None and _OTHER_LAYOUT.match(data, at) and _sound(MAGIC + data[at + 4 :], 0) is None:
        raise SpoolError(
            f"{offset:020d}.seg of the spool has records {data[at : at + 4].decode()} from offset {offset + at} on, which a newer version "
            f"of lightning-flows wrote; this one reads {MAGIC.decode()}. Nothing was changed: install that version, or give "
            "another `home`"
        )
    if acknowledged <= at:
        return None
    return first if first is not None and (until is None or first < until) else acknowledged


def _sound_behind(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Yield (position, durable) of the sound records behind the bad one at `at`.

    Look for each where the record before it ends by its own length; if none is there, search for the next one.
    """
    behind = at + _claimed_size(data, at)
    while True:
        found = _sound(data, behind)
        while found is None:
            if (behind := data.find(MAGIC, at + 1)) == -1:
                return
            at, found = behind, _sound(data, behind)
        yield behind, found[1]
        at, behind = behind, behind + found[0]


def _claimed_size(data: bytes, at: int) -> int:
    """Return the size that a record has by its own lengths; 0 where they cannot be true."""
    if len(data) - at < _FIXED.size:
        return 0
    magic, header_len, body_len, _, _ = _FIXED.unpack_from(data, at)
    return _FIXED.size + header_len + body_len if magic == MAGIC and header_len <= MAX_HEADER else 0


def read_durable(directory: Path | str) -> int:
    """Return the offset that file `durable` has; 0 where there is none, or a damaged one."""
    try:
        content = (Path(directory) / DURABLE).read_bytes()
        offset, crc = _DURABLE.unpack(content)
    except (FileNotFoundError, struct.error):
        return 0
    return int(offset) if zlib.crc32(content[:8]) == crc else 0


def encode_durable(offset: int) -> bytes:
    return _DURABLE.pack(offset, zlib.crc32(struct.pack("<Q", offset)))
