"""Whatever a crash leaves of the last segment, only what was not acknowledged is lost."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lightning_core.spool import spool
from lightning_core.spool.spool import Record, SpoolWriter
from lightning_core.spool.spool_format import DURABLE, segments
from tests.examples import of_many


def write(directory: Path, batches: list[list[bytes]], segment_bytes: int) -> list[int]:
    writer = SpoolWriter(directory, 1 << 30, segment_bytes)

    async def main() -> list[int]:
        ends: list[int] = []
        for bodies in batches:
            ends += await asyncio.gather(*(writer.append(Record("r", "a", "path", 1, "otlp", b)) for b in bodies))
        return ends

    ends = asyncio.run(main())
    writer.close()
    return ends


batches = st.lists(st.lists(st.binary(max_size=60), min_size=1, max_size=3), min_size=1, max_size=6)


@of_many(examples=25)
@given(
    batches=batches,
    segment_bytes=st.integers(60, 600),
    cut=st.floats(0, 1),
    junk=st.binary(max_size=30) | st.integers(1, 9000).map(bytes),  # zeros: room for what was to come
    noted=st.booleans(),  # that all was acknowledged
)
def test_a_truncated_last_segment_loses_at_most_its_tail(
    batches: list[list[bytes]], segment_bytes: int, cut: float, junk: bytes, noted: bool
) -> None:
    directory = Path(tempfile.mkdtemp())
    try:
        ends = write(directory, batches, segment_bytes)
        bodies = [body for batch in batches for body in batch]
        offset, path = segments(directory)[-1]
        original = path.read_bytes()
        left = original[: int(len(original) * cut)] + junk
        path.write_bytes(left)
        if not noted:
            (directory / DURABLE).unlink()
        alike = (a == b for a, b in zip(original, left, strict=False))
        keep = sum(itertools.takewhile(bool, alike))
        whole = [body for body, end in zip(bodies, ends, strict=True) if end <= offset + keep]
        sound = [end for end in ends if end <= offset + keep]
        lost = [(sound[-1] if sound else 0, ends[-1])] if noted and len(sound) < len(ends) else []

        def read() -> list[bytes]:
            rows = list(spool.read(directory, 0))
            assert [(begin, end) for begin, end, row in rows if row.source == "damaged"] == lost
            return [row.body for _, _, row in rows if row.source != "damaged"]

        # What is left reads the same before and after the writer has moved the rest aside …
        assert read() == whole
        SpoolWriter(directory, 1 << 30, segment_bytes).close()
        assert read() == whole
        # … and writing goes on behind it.
        more = write(directory, [[b"more"]], segment_bytes)
        assert read() == [*whole, b"more"]
        assert spool.durable_end(directory) == more[-1]
    finally:
        shutil.rmtree(directory)
