"""Digests of files, each computed once in a process."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from blake3 import blake3

# A file this old when it is read cannot change later and keep its time of change: a few ticks of the clock that stamps it.
_SETTLED_NS = 50_000_000
_SETTLED_COARSE_NS = 2_000_000_000  # where that clock has whole seconds

FileKey = tuple[int, int, int, int]
_hashed: dict[FileKey, str] = {}


def settled_key(file: Path) -> FileKey | None:
    """Return what identifies a file's content to this process; None for one just written. Call it before reading."""
    facts = file.stat()
    key = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_ctime_ns)
    settled = _SETTLED_NS if facts.st_ctime_ns % 1_000_000_000 else _SETTLED_COARSE_NS
    return key if time.time_ns() - facts.st_ctime_ns > settled else None


def digest(file: Path) -> str:
    """Return the BLAKE3 digest of a file's bytes, in hex. Raises OSError."""
    key = settled_key(file)
    if key in _hashed:
        return _hashed[key]
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update_mmap(file)
    if key is not None:
        _hashed[key] = hasher.hexdigest()
    return hasher.hexdigest()


def table_digest(file: Path) -> str:
    """Return the digest that a derived table has in its epoch's manifest. Raises OSError."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]
