"""The spool: append-only segments of raw OTLP requests, each answered only once it is on disk.

One process writes (`SpoolWriter`; an flock says so), any number read. Writing is a group commit in one thread, so
that many requests share one synchronous write: an append is resolved after its bytes and, for a new segment, the folder's
entry are on disk. Segments grow by zeros in front of what comes, so that a small write need not wait for the file system's journal
(half of the time, a third of the processor's); no record begins with zeros. Whatever was written but not acknowledged is cut off again
when writing fails, and moved aside (`torn/`) when the spool is opened after a crash. `spool_format` has the layout. Imports the
standard library only.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

from lightning_core.files import cut, fsync, make_folder, open_synced, write_at, write_atomic
from lightning_core.spool.reading import durable_end, read
from lightning_core.spool.spool_format import (
    DURABLE,
    MAX_HEADER,
    Record,
    Scope,
    SpoolError,
    SpoolFreed,
    SpoolFull,
    SpoolLocked,
    encode_durable,
    encode_head,
    encoded_size,
    read_durable,
    segment_path,
    segments,
    sound_end,
)

__all__ = [
    "Record",
    "Scope",
    "SpoolError",
    "SpoolFreed",
    "SpoolFull",
    "SpoolLocked",
    "SpoolWriter",
    "drop_before",
    "durable_end",
    "read",
]

log = logging.getLogger(__name__)

SEGMENT_BYTES = 64 * 1024 * 1024
_BATCH_BYTES = 32 * 1024 * 1024  # of requests that share a write: a disk takes few large ones faster than many
_AHEAD = bytes(256 * 1024)  # zeros that are written behind a batch, where the next would make the file longer
_RECOUNT_S = 0.2
_MARK_IDLE_S, _MARK_BUSY_S = 0.2, 1.0  # after which file `durable` is written

_Waiter = tuple[bytes, bytes, asyncio.AbstractEventLoop, "asyncio.Future[int]"]  # head, body, and who waits


def drop_before(directory: Path | str, offset: int) -> int:
    """Remove the segments that end at or below `offset`, never the last one; returns the bytes freed."""
    found = segments(directory)
    freed = 0
    for (begin, path), (end, _) in itertools.pairwise(found):
        if end > offset:
            break
        path.unlink(missing_ok=True)
        freed += end - begin
    return freed


class SpoolWriter:
    """Opens the spool for writing; `SpoolLocked` where another process has it.

    `max_bytes` bounds what is kept (not yet freed by `drop_before`). `segment_bytes` is where a new segment begins;
    by default 64 MiB, less where `max_bytes` is small, so that there is always something to free.
    `begin` is what a lake has decoded: where there is no spool yet, or an older one (a backup, put back) that ends before it,
    the next record begins there, and is not taken for one that was decoded.
    `torn_bytes` says how much of an unacknowledged tail was moved aside on opening, but for zeros at its end; `damaged_bytes` how
    much of the last segment was acknowledged and cannot be read back: reading goes on behind it.
    """

    def __init__(self, directory: Path | str, max_bytes: int, segment_bytes: int | None = None, begin: int = 0) -> None:
        self._directory = Path(directory)
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes or min(SEGMENT_BYTES, max(max_bytes // 8, 4096))
        make_folder(self._directory)
        self._lock = _lock(self._directory / ".lock")
        try:
            self._open_last(begin)
        except BaseException:
            os.close(self._lock)
            raise
        self._pending = 0  # bytes handed to the thread; touched by the event loop's thread only
        self._first, self._counted = self._first_offset(), time.monotonic()
        self._closed = False
        self._queue: deque[_Waiter] = deque()
        self._notified = False  # the thread was, or soon will be: the queue is not empty
        self._more: SimpleQueue[bool] = SimpleQueue()  # False: to stop
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)
        self._thread.start()

    def _open_last(self, begin: int) -> None:
        found = segments(self._directory)
        self._begin, path = found[-1] if found else (begin, segment_path(self._directory, begin))
        data = path.read_bytes() if found else b""
        good, self.damaged_bytes = sound_end(self._begin, data, read_durable(self._directory))
        self._fd = open_synced(path)
        if self.damaged_bytes:
            log.error("%s: %d bytes that were acknowledged cannot be read back", path, self.damaged_bytes)
        tail = data[good:].rstrip(b"\0")
        self.torn_bytes = len(tail)
        if tail:
            aside = self._directory / "torn" / f"{self._begin + good:020d}.bin"
            write_atomic(aside, tail, 0o600)
            log.warning("%s: its last %d bytes were never acknowledged; moved to %s", path, len(tail), aside)
        cut(self._fd, good)
        fsync(self._directory)
        self._end = self._begin + good
        if self._end < begin:
            log.warning("%s ends at %d, and up to %d was decoded: the next begins there", path, self._end, begin)
            os.close(self._fd)
            self._begin = self._end = begin
            self._fd = open_synced(segment_path(self._directory, begin))
            fsync(self._directory)
        self._durable = open_synced(self._directory / DURABLE)
        self._marked, self._marked_at = -1, 0.0  # what file `durable` says, and since when
        self._mark()
        self._size = self._end - self._begin  # of the segment's file, its zeros too
        self._tainted = False  # bytes past _end may be on disk and have to go before the next write
        self._finished: Path | None = None  # the segment before this one

    def end(self) -> int:
        """Return the offset behind the last acknowledged record."""
        return self._end

    def kept_bytes(self) -> int:
        """Return how many bytes on disk nobody has freed."""
        return self._end - self._first_offset()

    def is_full(self, more: int = 0) -> bool:
        """Return whether `more` bytes would exceed the limit; looks at the folder only when it seems so."""
        if self._end + self._pending + more - self._first <= self._max_bytes:
            return False
        if time.monotonic() - self._counted > _RECOUNT_S:
            self._first, self._counted = self._first_offset(), time.monotonic()
        return self._end + self._pending + more - self._first > self._max_bytes

    def _first_offset(self) -> int:
        found = segments(self._directory)
        return found[0][0] if found else self._end

    async def append(self, record: Record) -> int:
        """Store a record; returns its end offset once it is on disk.

        Raises SpoolFull, or SpoolError naming the operating system's error (disk full, I/O error); after either the
        record is not in the spool, and later appends may succeed.
        """
        size = encoded_size(record)
        if size - len(record.body) > MAX_HEADER:
            raise SpoolError(f"{self._directory}: rollout and attempt id are too long: {record.rollout_id!r:.60}")
        if self._closed:
            raise SpoolError(f"{self._directory}: the spool is closed, the gateway is stopping")
        if self.is_full(size):
            raise SpoolFull(
                f"{self._directory}: {self._max_bytes} bytes of spans wait to be decoded; decode them (`lightning-flows "
                f"ingest --home {self._directory.parent}`), or raise gateway.spool_max_gb"
            )
        try:
            head = encode_head(record, self._end)
        except ValueError as error:
            raise SpoolError(
                f"{self._directory}: rollout {record.rollout_id!r:.60} cannot be written: {error}"
            ) from None
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._pending += size
        try:
            self._queue.append((head, record.body, loop, future))
            # Once for all that this turn of the loop appends: the notified thread wants the interpreter's lock.
            if not self._notified:
                self._notified = True
                loop.call_soon(self._notify)
            return await future
        finally:
            self._pending -= size

    def _notify(self) -> None:
        self._notified = False
        self._more.put(True)

    def close(self) -> None:
        """Write what waits, then release the spool. Appends after this fail."""
        if self._closed:
            return
        self._closed = True
        self._more.put(False)
        self._thread.join()
        self._mark()
        self._close_segment()
        os.close(self._durable)
        os.close(self._lock)

    def _run(self) -> None:
        goes_on = True
        while goes_on:
            try:
                goes_on = self._more.get(timeout=_MARK_IDLE_S if self._marked < self._end else None)
            except Empty:
                self._mark()
            while batch := self._batch():
                self._commit(batch)
                if time.monotonic() - self._marked_at > _MARK_BUSY_S:
                    self._mark()

    def _mark(self) -> None:
        """Note in file `durable` what is acknowledged: of the last records nothing else on the disk says it."""
        if self._marked == self._end:
            return
        self._marked, self._marked_at = self._end, time.monotonic()
        try:
            write_at(self._durable, [encode_durable(self._end)], 0)
        except OSError as error:
            log.warning("%s: %s", self._directory / DURABLE, error)

    def _batch(self) -> list[_Waiter]:
        batch: list[_Waiter] = []
        size = 0
        while self._queue and size <= _BATCH_BYTES:
            batch.append(self._queue.popleft())
            size += len(batch[-1][1])
        return batch

    def _commit(self, batch: list[_Waiter]) -> None:
        buffers: list[bytes] = []
        ends, end = [], self._end
        for head, body, _, _ in batch:
            buffers += (head, body)
            end += len(head) + len(body)
            ends.append(end)
        try:
            self._write(buffers)
        except OSError as error:
            failure = SpoolError(f"{segment_path(self._directory, self._begin)}: spans were not stored: {error}")
            log.error("%s", failure)
            _resolve(batch, lambda i: failure)
            return
        self._end = end
        _resolve(batch, lambda i: ends[i])

    def _write(self, buffers: list[bytes]) -> None:
        if self._tainted:
            self._cut_back()
        if self._end - self._begin >= self._segment_bytes:
            self._roll()
        self._tainted = True
        at, size = self._end - self._begin, sum(map(len, buffers))
        if size < len(_AHEAD) and at + size > self._size:
            buffers = [*buffers, _AHEAD]
            size += len(_AHEAD)
        try:
            write_at(self._fd, buffers, at)
        except OSError:
            try:
                self._cut_back()
            except OSError as error:
                log.error("could not cut back to offset %d, will try again: %s", self._end, error)
            raise
        self._size = max(self._size, at + size)
        self._tainted = False

    def _cut_back(self) -> None:
        cut(self._fd, self._end - self._begin)
        self._size = self._end - self._begin
        self._tainted = False

    def _close_segment(self) -> None:
        with contextlib.suppress(OSError):  # zeros do no harm
            os.ftruncate(self._fd, self._end - self._begin)
        os.close(self._fd)

    def _roll(self) -> None:
        fd = open_synced(segment_path(self._directory, self._end))
        try:
            fsync(self._directory)
        except OSError:
            os.close(fd)
            raise
        self._close_segment()
        if self._finished is not None:
            _forget(self._finished)
        self._finished = segment_path(self._directory, self._begin)
        self._fd, self._begin, self._size = fd, self._end, 0


def _forget(path: Path) -> None:
    """Take a finished segment out of the page cache: by now the decoder has read it, or is far behind.

    Else a long run fills memory with bytes that are read once, and each write has to find fresh pages first: three
    times slower on a virtual machine.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError):  # it may be decoded and gone; and this is advice only
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _resolve(batch: list[_Waiter], outcome: Callable[[int], int | Exception]) -> None:
    """Answer all waiters with one wake-up for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[int], int | Exception]]] = {}
    for i, (_, _, loop, future) in enumerate(batch):
        by_loop.setdefault(loop, []).append((future, outcome(i)))
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(_answer, answers)
        except RuntimeError:
            log.warning("%d appends were stored after their event loop had closed", len(answers))


def _answer(answers: list[tuple[asyncio.Future[int], int | Exception]]) -> None:
    for future, result in answers:
        if future.done():  # the waiter was cancelled
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise SpoolLocked(
            f"{path.parent}: process {holder} already writes to this spool; stop that gateway, or use another `home`"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, str(os.getpid()).encode())
    return fd
