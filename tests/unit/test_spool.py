"""The spool: what was acknowledged is there, what was not may be cut off, nothing is silently wrong."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from lightning_core.spool import spool
from lightning_core.spool.spool import Record, SpoolError, SpoolFreed, SpoolFull, SpoolLocked, SpoolWriter
from lightning_core.spool.spool_format import segments
from tests.spool_maker import append_all, record, written


async def _append(writer: SpoolWriter, what: Record) -> int:
    return await writer.append(what)


def test_records_come_back_as_they_went_in_with_chained_offsets(tmp_path: Path) -> None:
    bodies = [b"", b"one", os.urandom(100_000)]
    ends = written(tmp_path, bodies)
    rows = list(spool.read(tmp_path, 0))
    assert [row.body for _, _, row in rows] == bodies
    assert rows[1][2] == record(b"one")
    assert [end for _, end, _ in rows] == ends
    assert [begin for begin, _, _ in rows] == [0, *ends[:-1]]
    assert spool.durable_end(tmp_path) == ends[-1]


def test_a_record_without_scope_keeps_none_apart_from_text(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, 1 << 20)
    asyncio.run(writer.append(record(b"body", None, None)))
    writer.close()
    assert next(iter(spool.read(tmp_path, 0)))[2].rollout_id is None


def test_reading_begins_and_ends_at_the_offsets_given_over_segments(tmp_path: Path) -> None:
    bodies = [bytes([i]) * 500 for i in range(20)]
    ends: list[int] = []
    writer = SpoolWriter(tmp_path, 1 << 30, segment_bytes=1500)
    for body in bodies:
        ends += append_all(writer, [body])
    writer.close()
    assert len(segments(tmp_path)) > 3
    assert [row.body for _, _, row in spool.read(tmp_path, ends[4], ends[9])] == bodies[5:10]
    assert list(spool.read(tmp_path, ends[-1])) == []
    assert list(spool.read(tmp_path, ends[3], ends[3])) == []


def test_no_spool_reads_as_empty(tmp_path: Path) -> None:
    assert list(spool.read(tmp_path / "none", 0)) == []
    assert spool.durable_end(tmp_path / "none") == 0


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, 1 << 20)
    try:
        with pytest.raises(SpoolLocked, match=str(os.getpid())):
            SpoolWriter(tmp_path, 1 << 20)
    finally:
        writer.close()
    SpoolWriter(tmp_path, 1 << 20).close()


def test_reopening_continues_at_the_same_offset(tmp_path: Path) -> None:
    first = written(tmp_path, [b"a"])
    second = written(tmp_path, [b"b"])
    assert [row.body for _, _, row in spool.read(tmp_path, 0)] == [b"a", b"b"]
    assert second[0] == 2 * first[0]


def test_a_full_spool_refuses_until_segments_are_dropped(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, 20_000, segment_bytes=2_000)
    ends = []
    with pytest.raises(SpoolFull, match="spool_max_gb"):
        for _ in range(100):
            ends += append_all(writer, [b"x" * 900])
    assert writer.kept_bytes() <= 20_000
    freed = spool.drop_before(tmp_path, ends[-3])
    assert freed > 10_000
    asyncio.run(asyncio.sleep(0.25))  # the writer looks at the folder a few times a second
    append_all(writer, [b"y"])
    with pytest.raises(SpoolFreed, match="gone"):
        list(spool.read(tmp_path, 0))
    writer.close()


def test_dropping_keeps_the_segment_that_holds_the_offset_and_the_last(tmp_path: Path) -> None:
    ends: list[int] = []
    writer = SpoolWriter(tmp_path, 1 << 30, segment_bytes=1500)
    for _ in range(12):
        ends += append_all(writer, [b"z" * 500])
    writer.close()
    spool.drop_before(tmp_path, ends[6] + 1)
    assert [end for _, end, _ in spool.read(tmp_path, ends[6])] == ends[7:]
    spool.drop_before(tmp_path, 1 << 40)
    assert len(segments(tmp_path)) == 1


def test_what_was_appended_is_on_disk_when_it_is_written(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, 1 << 30, segment_bytes=500)
    append_all(writer, [b"x" * 600])
    append_all(writer, [b"y" * 600])  # in a segment of its own
    listed = [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]
    opened = {os.readlink(f"/proc/self/fd/{fd}"): int(fd) for fd in listed}
    assert fcntl.fcntl(opened[str(segments(tmp_path)[-1][1])], fcntl.F_GETFL) & os.O_DSYNC
    writer.close()


def test_small_appends_do_not_each_make_the_file_longer_and_no_zeros_stay(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, 1 << 30, segment_bytes=100_000)
    sizes = set()
    for _ in range(50):
        end = append_all(writer, [b"x" * 600])[0]
        sizes.add(segments(tmp_path)[0][1].stat().st_size)
    assert len(sizes) == 1 and spool.durable_end(tmp_path) == end
    assert len(list(spool.read(tmp_path, 0))) == 50
    append_all(writer, [b"y" * 90_000, b"z"])
    append_all(writer, [b"last"])  # in the next segment
    (first, path), (second, last) = segments(tmp_path)
    assert path.stat().st_size == second - first
    writer.close()
    assert last.stat().st_size == spool.durable_end(tmp_path) - second


def test_a_rollout_id_that_has_no_bytes_is_refused(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, 1 << 30)
    with pytest.raises(SpoolError, match="cannot be written"):
        asyncio.run(_append(writer, record(b"body", "\ud800")))
    writer.close()


@pytest.mark.parametrize("written_before", [0, 10, 10_000])
def test_a_failed_write_fails_its_appends_only_and_leaves_no_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_before: int
) -> None:
    writer = SpoolWriter(tmp_path, 1 << 30)
    append_all(writer, [b"before"])
    end = writer.end()
    real = os.pwritev
    failures = iter([True])

    def broken(fd: int, buffers: list[bytes], at: int) -> int:
        if next(failures, False):
            real(fd, [b"".join(buffers)[:written_before]], at)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "pwritev", broken)
    with pytest.raises(SpoolError, match="No space left"):
        append_all(writer, [b"lost"])
    assert writer.end() == end == segments(tmp_path)[0][1].stat().st_size
    append_all(writer, [b"after"])
    writer.close()
    assert [row.body for _, _, row in spool.read(tmp_path, 0)] == [b"before", b"after"]


def test_writes_that_the_system_cuts_short_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at: real(fd, [b"".join(buffers)[:1000]], at))
    bodies = [os.urandom(size) for size in (0, 5, 900, 2500, 1)] + [b"x"] * 1500
    written(tmp_path, bodies)
    assert [row.body for _, _, row in spool.read(tmp_path, 0)] == bodies


def test_a_record_that_cannot_be_kept_disturbs_nobody_elses(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, 1 << 30)

    async def main() -> list[int | BaseException]:
        appends = [
            writer.append(record(b"a")),
            writer.append(record(b"body", "r" * 70_000)),
            writer.append(record(b"b")),
        ]
        return await asyncio.gather(*appends, return_exceptions=True)

    _, refused, _ = asyncio.run(main())
    writer.close()
    assert isinstance(refused, SpoolError) and "too long" in str(refused)
    assert [row.body for _, _, row in spool.read(tmp_path, 0)] == [b"a", b"b"]


def test_a_cut_back_that_fails_is_made_good_before_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SpoolWriter(tmp_path, 1 << 30)
    write, sync = os.pwritev, os.fsync
    broken = {"write", "sync"}

    def fail(what: str) -> None:
        if what in broken:
            broken.remove(what)
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at: (write(fd, buffers, at), fail("write"))[0])
    monkeypatch.setattr(os, "fsync", lambda fd: (sync(fd), fail("sync"))[0])  # that of the cut back
    with pytest.raises(SpoolError, match="Input/output"):
        append_all(writer, [b"lost" * 100])
    append_all(writer, [b"x"])
    writer.close()
    assert [row.body for _, _, row in spool.read(tmp_path, 0)] == [b"x"]


def test_segments_leave_the_page_cache_but_the_newest_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda fd, *_: forgotten.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
    )
    open_before = len(os.listdir("/proc/self/fd"))
    writer = SpoolWriter(tmp_path, 1 << 30, segment_bytes=1500)
    for i in range(12):
        end = append_all(writer, [bytes([i]) * 500])[0]
        if i == 6:
            spool.drop_before(tmp_path, end)  # the decoder may be ahead
    names = [path.name for _, path in segments(tmp_path)]
    assert forgotten and not set(forgotten) & set(names[-2:])
    writer.close()
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_many_waiting_appends_share_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SpoolWriter(tmp_path, 1 << 30)
    calls: list[int] = []
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at: (calls.append(fd), real(fd, buffers, at))[1])
    append_all(writer, [b"x"] * 500)
    writer.close()
    assert len(calls) < 100


def test_a_cancelled_append_disturbs_nobody(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, 1 << 30)

    async def main() -> int:
        first: Callable[[], Awaitable[int]] = lambda: writer.append(record(b"1"))  # noqa: E731
        task = asyncio.ensure_future(first())
        await asyncio.sleep(0)
        task.cancel()
        return await writer.append(record(b"2"))

    asyncio.run(main())
    writer.close()
    assert [row.body for _, _, row in spool.read(tmp_path, 0)][-1] == b"2"


WRITER = """
import asyncio, sys
from lightning_core.spool.spool import Record, SpoolWriter

async def worker(writer, name):
    n = 0
    while True:
        body = f"{name}.{n}".encode() * 50
        end = await writer.append(Record("r", "a", "path", n, "otlp", body))
        sys.stdout.write(f"{name}.{n} {end}\\n")
        sys.stdout.flush()
        n += 1

async def main():
    writer = SpoolWriter(sys.argv[1], 1 << 30, segment_bytes=40_000)
    await asyncio.gather(*(worker(writer, w) for w in range(8)))

asyncio.run(main())
"""


def test_a_writer_killed_with_sigkill_leaves_every_acknowledged_record(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(400)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().splitlines()
    process.wait()
    # The last line may itself be cut short by the kill: it has an end only when it is whole.
    acknowledged = {name.strip(): int(end) for name, _, end in (line.partition(" ") for line in lines[:-1])}
    SpoolWriter(tmp_path, 1 << 30).close()
    stored = {row.body[: len(row.body) // 50].decode(): end for _, end, row in spool.read(tmp_path, 0)}
    assert len(acknowledged) >= 399
    assert acknowledged.items() <= stored.items()
