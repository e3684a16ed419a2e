"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard


def write_atomic(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write beside `path`, fsync, rename over it. `path`'s folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Make a file's content durable, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(path: Path, to: Path) -> None:
    """Rename a file into another folder of the disk, which is made if missing."""
    to.parent.mkdir(parents=True, exist_ok=True)
    path.replace(to)
    fsync(to.parent)
    fsync(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder durable with all that is in it, but its own name: that is an entry of its parent."""
    for path in folder.rglob("*"):
        fsync(path)
    fsync(folder)


def is_full_disk(error: BaseException) -> TypeGuard[OSError]:
    """Whether the system refused a write because the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold a lock on `path` (made if missing) over processes; True where it was got, always if `wait`.

    The lock excludes all others, or those that are not `shared`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
