"""Read a spool back, while another process writes to it or not. Imports the standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_core.files import fsync
from lightning_core.spool.spool_format import (
    Record,
    SpoolFreed,
    behind_damage,
    read_durable,
    read_record,
    segments,
    sound_end,
)


def read(directory: Path | str, start: int, stop: int | None = None) -> Iterator[tuple[int, int, Record]]:
    """Yield (offset, next offset, record) from the record that begins at `start` up to `stop` or the torn tail.

    Offsets are global bytes; `start` and `stop` must be record boundaries (0, or an offset the spool has named).
    Bytes below the gateway's `end()` are never torn, so compare the last next offset with `stop` if in doubt. What was
    acknowledged and cannot be read back (a damaged record, a gap between segments) is one record of the source
    `damaged`, with what is left of its bytes. Raises SpoolFreed for a `start` that `drop_before` has freed.
    """
    found = segments(directory)
    if not found or (stop is not None and start >= stop):
        return
    if start < found[0][0]:
        raise SpoolFreed(
            f"{directory}: offset {start} is gone, the first one kept is {found[0][0]}; spool and lake are not of one time. Put back "
            "what belongs together, or `lightning-flows lake repair` goes on behind it and counts what lay between as lost"
        )
    first = max(i for i, (offset, _) in enumerate(found) if offset <= start)
    for i in range(first, len(found)):
        offset, path = found[i]
        follows = found[i + 1][0] if i + 1 < len(found) else None
        at = max(start - offset, 0)
        with path.open("rb") as file:
            while True:
                file.seek(at)
                while (stop is None or offset + at < stop) and (found_record := read_record(file)) is not None:
                    size, record = found_record
                    yield offset + at, offset + at + size, record
                    at += size
                if stop is not None and offset + at >= stop:
                    return
                if offset + at == follows:
                    break
                damaged = _damaged(directory, offset, path, at, follows, stop)
                if damaged is None:
                    return
                yield damaged
                at = damaged[1] - offset


def _damaged(
    directory: Path | str, offset: int, path: Path, at: int, follows: int | None, stop: int | None
) -> tuple[int, int, Record] | None:
    """Return what `read` yields for the bad record at position `at` of a segment; None for a tail that is torn, or was."""
    data = path.read_bytes()
    goes_on = behind_damage(offset, data, read_durable(directory), at, None if follows is None else follows - offset)
    if goes_on is None:
        return None
    with path.open("rb") as again:  # a record that was being written at the first look is sound by now
        again.seek(at)
        if read_record(again) is not None:
            return None
    goes_on = goes_on if stop is None else min(goes_on, stop - offset)
    record = Record(None, None, "none", path.stat().st_mtime_ns, "damaged", data[at:goes_on])
    return offset + at, offset + goes_on, record


def durable_end(directory: Path | str) -> int:
    """Return the offset behind the last sound record on disk; 0 where there is no spool.

    While a gateway runs, its own `end()` (`POST /admin/seal`) is the acknowledged one; this may be a few records more.
    """
    found = segments(directory)
    if not found:
        return 0
    offset, path = found[-1]
    fsync(path)  # without a gateway what was written last may not be on disk, and is about to be built upon
    return offset + sound_end(offset, path.read_bytes(), read_durable(directory))[0]
