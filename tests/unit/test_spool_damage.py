"""The spool after a flipped bit, a lost segment, a kill: what is read, and what is said to be damaged."""

from __future__ import annotations

import bisect
import random
import shutil
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from lightning_core.spool import reading, spool
from lightning_core.spool.spool import Record, SpoolWriter
from lightning_core.spool.spool_format import read_durable, segments
from tests.spool_maker import append_all, written


def flip(path: Path, at: int, bit: int = 0xFF) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(data)


def test_a_flipped_bit_of_the_last_commit_costs_the_record_it_is_in_alone(tmp_path: Path) -> None:
    bodies = [f"{number}.".encode() * 20 for number in range(128)]
    ends = written(tmp_path / "sound", bodies)
    [(_, path)] = segments(tmp_path / "sound")
    starts = [0, *ends[:-1]]
    random.seed(7)
    for at in [*range(24), *(random.randrange(ends[-1]) for _ in range(60)), starts[127] + 5, ends[-1] - 1]:
        shutil.rmtree(tmp_path / "spool", ignore_errors=True)
        shutil.copytree(path.parent, tmp_path / "spool")
        flip(segments(tmp_path / "spool")[0][1], at, 1 << random.randrange(8))
        hit = bisect.bisect_right(starts, at) - 1
        for opened in (False, True):
            rows = list(spool.read(tmp_path / "spool", 0))
            bad = [(begin, end, len(row.body)) for begin, end, row in rows if row.source == "damaged"]
            assert bad == [(starts[hit], ends[hit], ends[hit] - starts[hit])], (at, opened)
            assert [row.body for _, _, row in rows if row.source != "damaged"] == bodies[:hit] + bodies[hit + 1 :]
            if not opened:
                writer = SpoolWriter(tmp_path / "spool", 1 << 30)
                assert (writer.end(), writer.torn_bytes) == (ends[-1], 0)
                assert writer.damaged_bytes == ends[hit] - starts[hit]
                writer.close()
        assert spool.durable_end(tmp_path / "spool") == ends[-1]


def test_a_killed_writer_has_noted_what_was_acknowledged_a_moment_before(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, 1 << 30)
    first, second = append_all(writer, [b"a" * 50, b"b" * 50])
    while read_durable(tmp_path) < second:
        time.sleep(0.01)
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))  # as a kill leaves it
    writer.close()
    flip(tmp_path / "copy" / segments(tmp_path)[0][1].name, second - 3)
    rows = list(spool.read(tmp_path / "copy", 0))
    assert [(begin, end, row.source) for begin, end, row in rows] == [(0, first, "otlp"), (first, second, "damaged")]


def test_damage_in_a_segment_before_the_last_and_a_segment_that_is_gone_hold_nothing_up(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, 1 << 30, segment_bytes=500)
    ends = [end for number in range(5) for end in append_all(writer, [bytes([number]) * 600])]
    writer.close()
    flip(segments(tmp_path)[1][1], 200)
    segments(tmp_path)[3][1].unlink()
    rows = list(spool.read(tmp_path, 0))
    assert [end for _, end, _ in rows] == ends
    assert [row.source for _, _, row in rows] == ["otlp", "damaged", "otlp", "damaged", "otlp"]
    assert [row.source for _, _, row in spool.read(tmp_path, ends[0], ends[1])] == ["damaged"]


def test_what_is_written_while_it_is_read_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SpoolWriter(tmp_path, 1 << 30)
    append_all(writer, [b"before"])
    real = reading.read_record

    def late(file: BinaryIO) -> tuple[int, Record] | None:
        found = real(file)
        if found is None:
            monkeypatch.setattr(reading, "read_record", real)
            append_all(writer, [b"first"])
            append_all(writer, [b"second"])  # it says that the first was acknowledged
        return found

    monkeypatch.setattr(reading, "read_record", late)
    assert [row.body for _, _, row in spool.read(tmp_path, 0)] == [b"before"]
    assert [row.body for _, _, row in spool.read(tmp_path, 0)] == [b"before", b"first", b"second"]
    writer.close()


def test_a_tail_that_nobody_was_told_of_is_moved_aside(tmp_path: Path) -> None:
    end = written(tmp_path, [b"x" * 600])[0]
    path = segments(tmp_path)[0][1]
    path.write_bytes(path.read_bytes() + b"LFs1 of a killed writer")
    writer = SpoolWriter(tmp_path, 1 << 30)
    writer.close()
    assert (writer.end(), writer.torn_bytes) == (end, 23)
    assert (tmp_path / "torn" / f"{end:020d}.bin").read_bytes() == b"LFs1 of a killed writer"


def test_zeros_that_a_crash_left_are_no_torn_tail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    end = written(tmp_path, [b"x" * 600])[0]
    path = segments(tmp_path)[0][1]
    path.write_bytes(path.read_bytes() + bytes(5000))
    writer = SpoolWriter(tmp_path, 1 << 30)
    assert (writer.end(), writer.torn_bytes, path.stat().st_size, caplog.text) == (end, 0, end, "")
    writer.close()
