"""Files that are there whole or not at all, also after a power cut: all durable writes go through here.

A file is durable once its bytes are synced and the folder that has its name; a folder, once the one above it is. So what is new is
written beside, synced, renamed, and then its folder is synced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

logger = logging.getLogger(__name__)

# Each write is on disk when it returns: of write and fsync, each gives up the interpreter's lock and waits for it again.
_SYNCED = os.O_RDWR | os.O_CREAT | os.O_DSYNC
_MOST_BUFFERS = 1024  # in one system call


def write_atomic(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write beside `path`, fsync, rename over it. `path`'s folder is made if missing."""
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        put_in_place(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, durably."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        fsync(each.parent)


def put_in_place(beside: Path, path: Path) -> None:
    """Rename a file, or a folder with all that is in it, to `path`, durably: it is there whole, or what was there before.

    Raises OSError where `path` is a folder with something in it: of two that put one there, one wins.
    """
    if beside.is_dir():
        for inner in beside.rglob("*"):
            fsync(inner)
    fsync(beside)
    rename(beside, path)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Link a file, so that both names have one place on the disk; copy it where that fails, as for another disk."""
    try:
        os.link(source, target)
    except OSError as error:
        logger.debug("%s: cannot be linked (%s), copying", source, error)
        shutil.copyfile(source, target)


def rename(path: Path, to: Path) -> None:
    """Rename what is durable already, and make its new name durable too. The folder of `to` is made if missing."""
    make_folder(to.parent)
    os.rename(path, to)
    fsync(to.parent)
    if path.parent != to.parent:
        fsync(path.parent)


def open_synced(path: Path, mode: int = 0o600) -> int:
    """Open a file, made if missing; returns a descriptor whose writes are on disk when they return.

    The file's name is not on disk then: see `fsync`.
    """
    return os.open(path, _SYNCED, mode)


def write_at(descriptor: int, buffers: list[bytes], at: int) -> None:
    """Write the buffers one after another from `at` on, without making one of them."""
    for first in range(0, len(buffers), _MOST_BUFFERS):
        some = buffers[first : first + _MOST_BUFFERS]
        size = sum(map(len, some))
        written = os.pwritev(descriptor, some, at)
        while written < size:
            rest = memoryview(b"".join(some))[written:]
            written += os.pwritev(descriptor, [rest], at + written)
        at += size


def cut(descriptor: int, size: int) -> None:
    """Cut a file off at `size`, durably."""
    os.ftruncate(descriptor, size)
    os.fsync(descriptor)


def fsync(path: Path) -> None:
    """Make a file's content durable, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full_disk(error: BaseException) -> TypeGuard[OSError]:
    """Return whether the system refused a write because the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold a lock on `path` (made if missing) over processes; yields True where it holds it, always if `wait`.

    The lock excludes all others, or those that are not `shared`.
    """
    make_folder(path.parent)
    how = os.O_RDONLY if shared else os.O_RDWR  # who may only read can share it
    with os.fdopen(os.open(path, how | os.O_CREAT, 0o666)) as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
