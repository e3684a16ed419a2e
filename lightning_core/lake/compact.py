"""Small span files become large ones, sorted by rollout, without readers noticing.

Files are immutable: rows are merged into new files, the manifest is swapped, and what it no longer names is retired.
A retired file is removed once the catalog has done without it for a grace period and no connection of `Lake.connect`
is open, so that a reader never misses a file and never counts a row twice.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_core.files import locked
from lightning_core.lake import catalog, parquet, retries, schema, sql
from lightning_core.lake.manifest import LakeError, SpanFile, SpanManifest
from lightning_core.lake.verify import require_sound

if TYPE_CHECKING:
    from lightning_core.lake.lake import Lake

logger = logging.getLogger(__name__)

GRACE_S = 600.0  # a query that has read the manifest is through by then
ORPHAN_S = 86_400.0  # what no manifest names may be in the making; not a day long
FULL_BYTES = 512 << 20  # a file of this size is never merged again
_SMALLEST, _FAN = (
    1 << 20,
    8,
)  # files of 1/8 to 1 MB, 1 to 8 MB, … are merged when there are 8: four rewrites a row at most
_MEMORY_GB = 1.0
_ROW_BYTES = 700  # of memory that a row takes at least while it is sorted
_SAMPLES = 64  # keys drawn for each range
_KEY = "rollout_id, start_ns, trace_id, span_id, record_offset, record_index"


@dataclass(frozen=True)
class Compacted:
    """What one compaction did."""

    before: int = 0  # files
    after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    retries: int = 0  # rows dropped because they were there already


def due(files: list[SpanFile]) -> list[SpanFile]:
    """Return the files to merge now: those of the smallest size of which there are enough; else an empty list."""
    bound = _SMALLEST
    while bound <= FULL_BYTES:
        tier = [f for f in files if f.bytes < bound and (bound == _SMALLEST or f.bytes >= bound // _FAN)]
        if len(tier) >= _FAN:
            return tier
        bound *= _FAN
    return []


def compact(lake: Lake, everything: bool = False) -> Compacted:
    """Merge what is due; `everything`: all files that are not full. Raises LakeError, and leaves the lake as it was.

    One compaction or retention at a time (a lock sees to it); decoding goes on meanwhile.
    """
    with rewriting(lake):
        files = lake.manifests.spans().files
        chosen = [f for f in files if f.bytes < FULL_BYTES] if everything else due(files)
        if len(chosen) < 2:
            return Compacted()
        new = rewrite(lake, chosen)
        with swapping(lake, chosen, new):
            pass
        lake.rebuild_catalog()
    dropped = sum(f.rows for f in chosen) - sum(f.rows for f in new)
    done = Compacted(len(chosen), len(new), sum(f.bytes for f in chosen), sum(f.bytes for f in new), dropped)
    logger.info("%d span files became %d (%.1f MB)", done.before, done.after, done.bytes_after / 1e6)
    return done


@contextmanager
def rewriting(lake: Lake) -> Iterator[None]:
    """Hold the lock that replacing span files requires; errors of the engine and of the disk come out as LakeError."""
    try:
        with locked(lake.root / "compact.lock"):
            yield
    except (duckdb.Error, parquet.NotWritten) as error:
        raise LakeError(f"{lake.root}: span files were not rewritten, the lake is as it was before: {error}") from error


@contextmanager
def swapping(lake: Lake, gone: list[SpanFile], new: list[SpanFile]) -> Iterator[SpanManifest]:
    """Replace `gone` by `new` in the manifest, yield it, and save it at the end; the caller renews the catalog then."""
    with locked(lake.root / "lock"):
        manifest = lake.manifests.spans()
        manifest.swap(gone, new, time.time_ns())
        yield manifest
        lake.manifests.put_spans(manifest)


def rewrite(lake: Lake, files: list[SpanFile], leaving: pa.Table | None = None) -> list[SpanFile]:
    """Write the rows of some files anew: sorted, each once, without those `leaving` (record_offset, record_index).

    The files depend on the set of rows and nothing else, but for their names. The manifest does not name them yet.
    """
    require_sound(lake.root, files)
    paths = [f.path for f in files]
    others = [f for f in lake.manifests.spans().files if f.path not in set(paths)]
    with lake.engine(_MEMORY_GB) as con:
        con.execute(f"CREATE VIEW merged AS {catalog.span_rows(files)}")
        con.execute(retries.view("arriving", files))
        con.execute(retries.view("stored", others))
        con.execute(f"CREATE TABLE gone AS {sql.text('lake/retries')}")
        if leaving is not None:
            con.register("leaving", leaving)
            con.execute("INSERT INTO gone SELECT record_offset, record_index FROM leaving")
        spans = schema.arrow_schema(schema.SPANS)
        weighed = parquet.row_groups(_sorted(con, _bounds(con, lake.root, files)), "weight")
        groups = (group.drop_columns("weight").cast(spans) for group in weighed)
        recipe = "\n".join([*paths, str(con.execute("SELECT bit_xor(hash(gone)) FROM gone").fetchall())])
        digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
        first, last = min(f.start for f in files), max(f.end for f in files)
        return _write(lake.root, f"spans/{first:020d}-{last:020d}-{digest}", groups)


def _bounds(con: duckdb.DuckDBPyConnection, root: Path, files: list[SpanFile]) -> list[tuple[Any, ...]]:
    """Return keys that cut the rows into ranges small enough to sort in memory."""
    rows = sum(f.rows for f in files)
    size = 0
    for file in files:
        footer = pq.read_metadata(root / file.path)
        size += sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    ranges = int(max(2 * size, _ROW_BYTES * rows) / (_MEMORY_GB * 0.4e9)) + 1
    if ranges == 1:
        return []
    every = max(rows // (ranges * _SAMPLES), 1)
    samples = con.execute(
        "SELECT rollout_id, start_ns FROM merged WHERE content_hash % ? = 0 AND start_ns IS NOT NULL ORDER BY ALL",
        [every],
    ).fetchall()
    return list(dict.fromkeys(samples[i * len(samples) // ranges] for i in range(1, ranges))) if samples else []


def _sorted(con: duckdb.DuckDBPyConnection, bounds: list[tuple[Any, ...]]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of `merged` that stay, in order, with their `weight`, range by range."""
    for low, high in zip([None, *bounds], [*bounds, None], strict=True):
        where, values = _from(low) if low is not None else (["true"], [])
        if high is not None:
            beyond, more = _from(high)
            where.append(f"NOT ({' AND '.join(f'({part})' for part in beyond)})")
            values += more
            if high[0] is not None:  # lets whole row groups be skipped
                where.append("rollout_id <= ?")
                values.append(high[0])
        relation = con.sql(
            f"SELECT *, {parquet.weight()} AS weight FROM merged ANTI JOIN gone USING (record_offset, record_index) "
            f"WHERE {' AND '.join(f'({part})' for part in where)} ORDER BY {_KEY}",
            params=values,
        )
        yield from relation.to_arrow_reader(4096)


def _from(key: tuple[Any, ...]) -> tuple[list[str], list[Any]]:
    """Return conditions (never NULL) that hold from a key (rollout_id, start_ns) on, NULL last, and their values."""
    rollout, start = key
    if rollout is None:
        return ["rollout_id IS NULL", "start_ns >= ? OR start_ns IS NULL"], [start]
    return [
        "rollout_id >= ? OR rollout_id IS NULL",
        "rollout_id > ? OR rollout_id IS NULL OR start_ns >= ? OR start_ns IS NULL",
    ], [rollout, rollout, start]


def _write(root: Path, name: str, groups: Iterator[pa.Table]) -> list[SpanFile]:
    """Write row groups to files, a new one where one is full. What was written is removed again if anything fails."""
    files: list[SpanFile] = []
    try:
        group = next(groups, None)
        while group is not None:
            path = f"{name}-{len(files):03d}.parquet"
            rows, first, last = 0, [], []
            with parquet.replacing(root / path) as beside, parquet.span_writer(beside) as writer:
                while group is not None and beside.stat().st_size < FULL_BYTES:
                    writer.write_table(group, row_group_size=group.num_rows)
                    rows += group.num_rows
                    offsets = group["record_offset"].to_numpy()
                    first.append(int(offsets.min()))
                    last.append(int(offsets.max()))
                    group = next(groups, None)
            files.append(SpanFile.at(root, path, rows, min(first), max(last) + 1))
    except BaseException:
        for file in files:
            (root / file.path).unlink(missing_ok=True)
        raise
    return files


def sweep(lake: Lake, manifest: SpanManifest, grace_s: float = GRACE_S) -> int:
    """Remove retired files whose time has come; returns the bytes freed. The caller holds the lake's lock.

    The manifest is saved where it changed.
    """
    if not manifest.retired:
        return 0
    now = time.time_ns()
    built = catalog.built_ns(lake.root)
    if built is not None and any(r.since_ns > built for r in manifest.retired):
        lake.rebuild_catalog()  # whoever retired them was killed before; the grace begins now
        for entry in manifest.retired:
            entry.since_ns = max(entry.since_ns, now) if entry.since_ns > built else entry.since_ns
        lake.manifests.put_spans(manifest)
    named = lake.manifests.files()
    with locked(lake.root / "reading.lock", wait=False) as nobody_reads:
        if not nobody_reads:
            return 0
        expired = [r for r in manifest.retired if r.since_ns <= now - grace_s * 1e9]
        freed = 0
        for entry in expired:
            path = lake.root / entry.path
            if entry.path not in named and path.is_file():
                freed += path.stat().st_size
                path.unlink()
    if expired:
        manifest.retired = [r for r in manifest.retired if r not in expired]
        lake.manifests.put_spans(manifest)
    return freed


def tidy(lake: Lake, grace_s: float = GRACE_S) -> int:
    """Remove what `sweep` removes, and what killed processes left: files no manifest names, spilled data.

    Returns the bytes freed, without those of spilled data.
    """
    with locked(lake.root / "compact.lock"), locked(lake.root / "lock"):
        manifest = lake.manifests.spans()
        freed = sweep(lake, manifest, grace_s)
        named = lake.manifests.files() | {r.path for r in manifest.retired}
        long_ago = time.time() - ORPHAN_S
        for folder in ("spans", "derived"):
            for path in (lake.root / folder).rglob("*"):
                if not path.is_file() or str(path.relative_to(lake.root)) in named:
                    continue
                if path.stat().st_mtime < long_ago:
                    freed += path.stat().st_size
                    path.unlink()
        for spilled in (lake.root / "tmp").glob("*"):
            if spilled.is_dir() and spilled.stat().st_mtime < long_ago:
                shutil.rmtree(spilled, ignore_errors=True)
    return freed
