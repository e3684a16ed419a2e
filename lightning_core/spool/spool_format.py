"""What a spool is made of: segments of raw OTLP requests, and how a record lies in them.

A segment is `<20-digit global byte offset of its first byte>.seg`; offsets count bytes over all segments, and a
segment begins where the one before it ends. A record is

    magic (4) | header length u32 | body length u32 | durable u64 | crc32 u32 | header (JSON) | body (protobuf)

little-endian; the crc covers everything but the magic and itself. `durable` is the offset that had been
acknowledged when the record was written. It tells a torn tail from damage: a record behind a bad one that knows the
bad one as acknowledged proves that kept data was lost; without such a record the bad one was never acknowledged.

`lake.spool` writes and reads them. Imports the standard library only.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from lightning_core.errors import LightningError

MAGIC = b"LFs1"
_FIXED = struct.Struct("<4sIIQI")
_CHECKED = struct.Struct("<IIQ")
MAX_HEADER = 64 * 1024

Scope = Literal["path", "token", "none"]
# Who sent a request: the gateway itself, one who holds the gateway's secret (the runner, a grader, an importer), an attempt, or
# nobody that is known. `otlp`: a client of which that was not written down yet.
Source = Literal["gateway", "secret", "attempt", "nobody", "otlp"]


class SpoolError(LightningError):
    """Something is wrong with the spool; the message names the file."""


class SpoolFull(SpoolError):
    """The bytes not yet decoded exceed the limit."""


class SpoolLocked(SpoolError):
    """Another process writes to this spool."""


class SpoolCorrupt(SpoolError):
    """An acknowledged record cannot be read back, or bytes that were asked for are gone."""


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
    """What comes before the body of a record, `durable` being the offset acknowledged so far."""
    fields = [record.rollout_id, record.attempt_id, record.scope, record.received_ns, record.source]
    header = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    crc = _crc(header, record.body, durable)
    return _FIXED.pack(MAGIC, len(header), len(record.body), durable, crc) + header


def encoded_size(record: Record) -> int:
    """An upper bound of the bytes a record will take."""
    ids = len(record.rollout_id or "") + len(record.attempt_id or "")
    return _FIXED.size + len(record.body) + 6 * ids + 64


def _sound(data: bytes, at: int) -> tuple[int, int] | None:
    """(size, durable) of the record at position `at`; None where there is no whole, sound record."""
    view = memoryview(data)
    if len(view) - at < _FIXED.size:
        return None
    magic, header_len, body_len, durable, crc = _FIXED.unpack_from(view, at)
    size = _FIXED.size + header_len + body_len
    if magic != MAGIC or header_len > MAX_HEADER or len(view) - at < size:
        return None
    header_at = at + _FIXED.size
    header, body = view[header_at : header_at + header_len], view[header_at + header_len : at + size]
    return (size, durable) if _crc(header, body, durable) == crc else None


def _crc(header: bytes | memoryview, body: bytes | memoryview, durable: int) -> int:
    checked = _CHECKED.pack(len(header), len(body), durable)
    return zlib.crc32(body, zlib.crc32(header, zlib.crc32(checked)))


def read_record(file: BinaryIO) -> tuple[int, Record] | None:
    """(size, record) of the record where `file` stands; None where there is no whole, sound record.

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
    """(offset of its first byte, path) of every segment, in order; empty where there is no spool."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = [(int(name[:20]), Path(directory) / name) for name in names if len(name) == 24 and name.endswith(".seg")]
    return sorted(found)


def sound_end(offset: int, path: Path, data: bytes, at: int = 0) -> int:
    """Position in `data` where the sound records of the last segment end.

    Raises SpoolCorrupt when what follows shows that the record there had been acknowledged.
    """
    while (found := _sound(data, at)) is not None:
        at += found[0]
    later = data.find(MAGIC, at + 1)
    while later != -1:
        beyond = _sound(data, later)
        if beyond is not None and beyond[1] > offset + at:
            raise corrupt(path, offset + at)
        later = data.find(MAGIC, later + 1)
    return at


def corrupt(path: Path, offset: int) -> SpoolCorrupt:
    return SpoolCorrupt(
        f"{path}: the record at offset {offset} is damaged (an acknowledged one); restore the file from a copy, "
        f"or begin reading behind it"
    )
