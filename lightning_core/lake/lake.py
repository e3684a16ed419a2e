"""The lake of one `home`: decoding the spool into it, and asking it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_core.files import fsync, locked
from lightning_core.lake import catalog, spool
from lightning_core.lake.decode import Decoder, write_rejected
from lightning_core.lake.manifest import DerivedTable, EpochManifest, LakeError, Manifests, Mode, SpanFile

logger = logging.getLogger(__name__)

_BYTES_A_FILE = 64 * 1024 * 1024  # of spool; what one file decodes and one decoding holds in memory


@dataclass(frozen=True)
class Ingested:
    """What one decoding did."""

    spans: int
    rejected: int
    decoded_offset: int


class Lake:
    """`home/lake`: Parquet files, manifests, catalog. Any number of readers; one decoder at a time (a lock sees to it)."""

    def __init__(self, home: Path) -> None:
        self.root = home / "lake"
        self.spool = home / "spool"
        self.manifests = Manifests(self.root)

    def ingest(self, until: int | None = None, on_progress: Callable[[int, int], None] | None = None) -> Ingested:
        """Decode the spool up to offset `until` (its durable end by default) into Parquet and free it.

        on_progress: called with (bytes decoded, bytes in all). A file never spans `until`, so an epoch is whole files.
        """
        with locked(self.root / "lock"):
            manifest = self.manifests.spans()
            start = manifest.decoded_offset
            end = spool.durable_end(self.spool) if until is None else until
            decoder = Decoder()
            spans = rejected = 0
            for batch in _batches(self.spool, start, end):
                first, last = batch[0][0], batch[-1][1]
                table, bad = decoder.decode(batch)
                name = f"{first:020d}-{last:020d}"
                if table.num_rows:
                    path = f"spans/{name}.parquet"
                    size = self._write(path, table)
                    manifest.files.append(SpanFile(path=path, rows=table.num_rows, bytes=size, start=first, end=last))
                write_rejected(self.spool / "rejected", name, bad)
                manifest.rejected_spans += len(bad)
                manifest.decoded_offset = last
                self.manifests.put_spans(manifest)
                spans, rejected = spans + table.num_rows, rejected + len(bad)
                if on_progress is not None:
                    on_progress(last - start, end - start)
            spool.drop_before(self.spool, manifest.decoded_offset)
        return Ingested(spans, rejected, manifest.decoded_offset)

    def open_epoch(self, run: str, epoch: int, mode: Mode, versions: dict[str, str]) -> EpochManifest:
        """The manifest of an epoch; a new one begins at what is decoded now and remembers the policies' versions.

        Raises LakeError for a training epoch that others were built on since, with other versions now before it.
        """
        found = self.manifests.epoch(run, epoch, mode)
        if found is not None and found.versions != versions and found.stages:
            raise LakeError(
                f"{mode} epoch {epoch} of run {run!r} was made with {found.versions}, but the epochs before it now come to "
                f"{versions}: an earlier epoch was trained again. Give the settings another `run`"
            )
        if found is not None and found.versions != versions:
            found = None  # opened, and nothing done yet
        if found is None:
            offset = self.manifests.spans().decoded_offset
            found = EpochManifest(run=run, epoch=epoch, mode=mode, versions=versions, opened_offset=offset)
            self.manifests.put_epoch(found)
        return found

    @contextlib.contextmanager
    def working_on(self, run: str) -> Iterator[None]:
        """One process at a time works on a run. Raises LakeError where another does."""
        with locked(self.root / "manifests" / run / "lock", wait=False) as got:
            if not got:
                raise LakeError(f"another process works on run {run!r} of {self.root.parent}; wait for it, or stop it")
            yield

    def files_between(self, start: int, end: int | None) -> list[str]:
        """Span files that hold any of the spool's range [start, end); `end` None: all there is."""
        return [f.path for f in self.manifests.spans().files if f.end > start and (end is None or f.start < end)]

    @contextlib.contextmanager
    def connect(
        self, span_range: tuple[int, int | None] = (0, None), memory_gb: float = 2.0
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """An in-memory DuckDB with `spans` as a view over a range of the spool (all by default); spills into the lake."""
        spill = self.root / "tmp"
        spill.mkdir(parents=True, exist_ok=True)
        with duckdb.connect(
            config={"memory_limit": f"{memory_gb}GB", "temp_directory": str(spill), "file_search_path": str(self.root)}
        ) as con:
            con.execute(catalog.spans_view(self.files_between(*span_range), span_range))
            yield con

    def put_table(self, epoch: EpochManifest, name: str, table: pa.Table, key: str) -> DerivedTable:
        """Write a derived table of an epoch under a name that holds its key, and enter it in the epoch's manifest."""
        label = f"{epoch.epoch:04d}" if epoch.mode == "train" else f"{epoch.epoch:04d}-{epoch.mode}"
        path = f"derived/{epoch.run}/{label}/{name}-{key}.parquet"
        run = pa.array([epoch.run] * table.num_rows, pa.string())
        number = pa.array([epoch.epoch] * table.num_rows, pa.int64())
        table = table.add_column(0, "run", run).add_column(1, "epoch", number)
        self._write(path, table)
        digest = hashlib.sha256((self.root / path).read_bytes()).hexdigest()[:16]
        epoch.tables[name] = DerivedTable(path=path, rows=table.num_rows, digest=digest)
        return epoch.tables[name]

    def path(self, table: DerivedTable) -> Path:
        return self.root / table.path

    def rebuild_catalog(self) -> Path:
        """Replace `catalog.duckdb` by one over the newest manifests."""
        with locked(self.root / "catalog.lock"):
            return catalog.build(self.root, self.manifests)

    def _write(self, relative: str, table: pa.Table) -> int:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.tmp")
        pq.write_table(table, beside, compression="zstd", compression_level=1)
        fsync(beside)
        beside.replace(path)
        fsync(path.parent)
        return path.stat().st_size


def _batches(directory: Path, start: int, end: int) -> Iterator[list[tuple[int, int, spool.Record]]]:
    batch: list[tuple[int, int, spool.Record]] = []
    size = 0
    for entry in spool.read(directory, start, end):
        batch.append(entry)
        size += entry[1] - entry[0]
        if size >= _BYTES_A_FILE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
