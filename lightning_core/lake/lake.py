"""The lake of one `home`: decoding the spool into it, and asking it."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from lightning_core.digests import table_digest
from lightning_core.files import locked
from lightning_core.lake import catalog, compact, parquet, retries, sql
from lightning_core.lake.decode import Decoder, Placed, sweep_rejected, write_rejected
from lightning_core.lake.manifest import DerivedTable, EpochManifest, LakeError, Manifests, Mode, SpanFile, SpanManifest
from lightning_core.lake.migrate import migrate
from lightning_core.lake.redact import Redaction
from lightning_core.spool import spool

logger = logging.getLogger(__name__)

_BYTES_A_FILE = 64 * 1024 * 1024  # of spool; what one file decodes and one decoding holds in memory


@dataclass(frozen=True)
class Batch:
    """Records of the spool that are decoded together, wherever; `secret`: of their home."""

    records: list[Placed]
    secret: str | None = field(default=None, repr=False)

    @property
    def first(self) -> int:
        """Return the offset of the first record."""
        return self.records[0][0]


Decoded = tuple[int, int, pa.Table, list[dict[str, Any]]]  # a batch's range of the spool, its spans, what was rejected
Decode = Callable[[Iterator[Batch]], Iterator[Decoded]]


@dataclass(frozen=True)
class Ingested:
    """What one decoding did."""

    spans: int
    rejected: int
    retries: int  # spans that were there already
    decoded_offset: int
    refused: int = 0  # stored spans that claim what their senders may not say


class Lake:
    """`home/lake`: Parquet files, manifests, catalog. Any number of readers; one decoder at a time (a lock sees to it)."""

    def __init__(self, home: Path) -> None:
        """Open a home. Raises HomeError for one of a newer version; migrates the manifests of an older one."""
        migrate(home)
        self.root = home / "lake"
        self.spool = home / "spool"
        self.manifests = Manifests(self.root)

    def ingest(
        self,
        until: int | None = None,
        redaction: Redaction | None = None,
        decode: Decode | None = None,
    ) -> Ingested:
        """Decode the spool up to offset `until` (its durable end by default) into Parquet, free it, merge small files.

        decode: how batches become spans, in their order; by default here, one after another. Raises LakeError where the
        lake was redacted and no rules are given, and where the disk is full; what was decoded before stays, the next
        call goes on from there.
        """
        with locked(self.root / "lock"):
            manifest = self.manifests.spans()
            if redaction is None and manifest.redaction is not None:
                raise LakeError(
                    f"{self.root.parent}: spans of this lake are redacted; give the settings with their rules "
                    "(`lightning-flows ingest --settings FILE`), so that none is stored as it came; where there shall be no rules, "
                    "`lightning-flows ingest --unredacted` once"
                )
            compact.sweep(self, manifest)
            start = manifest.decoded_offset
            sweep_rejected(self.spool / "rejected", start)
            end = spool.durable_end(self.spool) if until is None else until
            # Another decoder may have passed `until` since it was asked for.
            if 0 < end < start and (until is None or spool.durable_end(self.spool) < start):
                raise LakeError(
                    f"{self.spool} ends at offset {end}, and the lake was decoded up to {start}: the spool was removed, or is "
                    "another lake's. Put it back; a gateway started in this home begins a new one behind what is decoded"
                )
            spans = rejected = repeated = refused = 0
            for decoded in (decode or _decoded)(self._batches(start, end)):
                try:
                    stored, bad, again, claims = self._store(manifest, decoded, redaction)
                except OSError as error:
                    raise LakeError(
                        f"{self.root.parent}: spans could not be stored; the spool keeps them, the next decoding goes on "
                        f"there: {error}"
                    ) from error
                spans, rejected, repeated = spans + stored, rejected + bad, repeated + again
                refused += claims
        self._merge_small_files()
        return Ingested(spans, rejected, repeated, manifest.decoded_offset, refused)

    def _store(
        self,
        manifest: SpanManifest,
        batch: Decoded,
        redaction: Redaction | None,
    ) -> tuple[int, int, int, int]:
        """Write one batch to one file and to the manifest, then drop it from the spool.

        Returns (spans, rejected, retries, refused).
        """
        first, last, decoded, bad = batch
        if redaction is not None:
            decoded, bad = redaction.spans(decoded), redaction.rejected(bad)
        table = retries.without(decoded, self.root, manifest.files)
        name = f"{first:020d}-{last:020d}"
        if table.num_rows:
            path = f"spans/{name}.parquet"
            parquet.write_table(self.root / path, table)
            manifest.files.append(SpanFile.at(self.root, path, table.num_rows, first, last))
        write_rejected(self.spool / "rejected", name, bad)
        again = decoded.num_rows - table.num_rows
        rejected = sum(r["count"] for r in bad)
        manifest.rejected_spans += rejected
        manifest.retries += again
        manifest.redaction = redaction.digest if redaction is not None else None
        manifest.decoded_offset = last
        self.manifests.put_spans(manifest)
        spool.drop_before(self.spool, last)
        return table.num_rows, rejected, again, table.num_rows - table["refused"].null_count

    def _batches(self, start: int, end: int) -> Iterator[Batch]:
        secret = self.secret()
        records: list[Placed] = []
        size = 0
        for entry in spool.read(self.spool, start, end):
            records.append(entry)
            size += entry[1] - entry[0]
            if size >= _BYTES_A_FILE:
                yield Batch(records, secret)
                records, size = [], 0
        if records:
            yield Batch(records, secret)

    def secret(self) -> str | None:
        """Return the gateway's secret, to check proofs by; None where no gateway made one."""
        try:
            return (self.root.parent / "services" / "secret").read_text().strip()
        except FileNotFoundError:  # no gateway made one, so there is no proof either
            return None

    def _merge_small_files(self) -> None:
        if not compact.due(self.manifests.spans().files):
            return
        try:
            compact.compact(self)
        except LakeError as error:
            # Every span is there and can be asked for; only the number of files grows.
            logger.warning("%s; `lightning-flows lake compact` tries again", error)

    def end(self) -> int:
        """Return the offset behind all that was received, decoded or not.

        A killed epoch's last rollouts wait in the spool.
        """
        return max(self.manifests.spans().decoded_offset, spool.durable_end(self.spool))

    def open_epoch(self, run: str, epoch: int, mode: Mode, versions: dict[str, str]) -> EpochManifest:
        """Return the manifest of an epoch.

        A new one begins behind all that was received, and remembers the policies' versions.
        Raises LakeError for a training epoch that others were built on since, with other versions now before it.
        """
        found = self.manifests.epoch(run, epoch, mode)
        if found is not None and not found.versions and found.sampled:
            found.versions = versions
            self.manifests.put_epoch(found)
        if found is not None and found.versions != versions and found.stages:
            raise LakeError(
                f"{found.named} of run {run!r} was made with {found.versions}, but the epochs before it now come to "
                f"{versions}: an earlier epoch was trained again. Give the settings another `run`"
            )
        if found is not None and found.versions != versions:
            found = None  # opened, and nothing done yet
        if found is None:
            found = EpochManifest(run=run, epoch=epoch, mode=mode, versions=versions, opened_offset=self.end())
            self.manifests.put_epoch(found)
        return found

    def open_ahead(self, run: str, epoch: int, sampled: dict[str, str]) -> EpochManifest | None:
        """Return the manifest of a training epoch whose rollouts run, from `sampled`, before its versions are known.

        None where it was opened with its versions already: those rollouts are not run ahead.
        """
        found = self.manifests.epoch(run, epoch)
        if found is not None and found.versions:
            return None
        if found is None:
            found = EpochManifest(run=run, epoch=epoch, opened_offset=self.end())
        found.sampled = sampled
        self.manifests.put_epoch(found)
        return found

    @contextlib.contextmanager
    def working_on(self, run: str) -> Iterator[None]:
        """Hold the lock of a run: one process at a time works on it. Raises LakeError where another does."""
        with locked(self.root / "manifests" / run / "lock", wait=False) as got:
            if not got:
                raise LakeError(f"another process works on run {run!r} of {self.root.parent}; wait for it, or stop it")
            yield

    def files_between(self, start: int, end: int | None) -> list[SpanFile]:
        """Return the span files that hold any of the spool's range [start, end); `end` None: all from `start` on."""
        return [f for f in self.manifests.spans().files if f.end > start and (end is None or f.start < end)]

    @contextlib.contextmanager
    def connect(
        self, span_range: tuple[int, int | None] = (0, None), memory_gb: float = 2.0
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open an in-memory DuckDB with `spans` as a view over a range of the spool (all by default).

        It spills into the lake. Its files stay until it is closed, also where they are compacted or removed meanwhile.
        """
        with locked(self.root / "reading.lock", shared=True), self.engine(memory_gb) as con:
            con.execute(catalog.spans_view(self.files_between(*span_range), span_range))
            yield con

    @contextlib.contextmanager
    def engine(self, memory_gb: float = 2.0) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open an in-memory DuckDB that resolves the lake's paths and spills into a folder of its own."""
        spill = self.root / "tmp"
        spill.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=spill, ignore_cleanup_errors=True) as own,
            duckdb.connect(
                config={"memory_limit": f"{memory_gb}GB", "temp_directory": own, "file_search_path": str(self.root)}
            ) as con,
        ):
            # Else each statement reads the footer of every span file again.
            con.execute("SET parquet_metadata_cache = true")
            sql.create_shared(con)
            yield con

    def put_table(
        self, epoch: EpochManifest, name: str, table: pa.Table | pa.RecordBatchReader, key: str
    ) -> DerivedTable:
        """Write a derived table of an epoch under a name that holds its key, and enter it in the epoch's manifest.

        table: whole, or as a reader of batches where it may be larger than memory. name: a table of the catalog; where
        each policy has a part of it, followed by a space and the policy.
        """
        label = f"{epoch.epoch:04d}" if epoch.mode == "train" else f"{epoch.epoch:04d}-{epoch.mode}"
        path = f"derived/{epoch.run}/{label}/{name.replace(' ', '-')}-{key}.parquet"
        rows = _write_labelled(self.root / path, table, epoch)
        epoch.tables[name] = DerivedTable(path=path, rows=rows, digest=table_digest(self.root / path))
        return epoch.tables[name]

    def path(self, table: DerivedTable) -> Path:
        return self.root / table.path

    def rebuild_catalog(self) -> Path:
        """Replace `catalog.duckdb` by one over the newest manifests. Raises LakeError; the former one stays then."""
        try:
            with locked(self.root / "catalog.lock"):
                return catalog.build(self.root, self.manifests, self.spool / "rejected")
        except (OSError, duckdb.IOException) as error:
            raise LakeError(
                f"{self.root / 'catalog.duckdb'} was not made anew: {error}; free some space and run again"
            ) from error


def _write_labelled(path: Path, table: pa.Table | pa.RecordBatchReader, epoch: EpochManifest) -> int:
    """Write rows with the columns `run` and `epoch` before their own, batch by batch; returns how many there are."""
    columns = pa.schema([("run", pa.string()), ("epoch", pa.int64()), *table.schema])

    def labelled(batch: pa.RecordBatch) -> pa.RecordBatch:
        run = pa.array([epoch.run] * batch.num_rows, pa.string())
        number = pa.array([epoch.epoch] * batch.num_rows, pa.int64())
        return pa.RecordBatch.from_arrays([run, number, *batch.columns], schema=columns)

    batches = table.to_batches() if isinstance(table, pa.Table) else table
    return parquet.write_stream(path, columns, map(labelled, batches))


def decode_batch(batch: Batch, decoder: Decoder | None = None) -> Decoded:
    decoder = decoder or Decoder(batch.secret)
    return batch.first, batch.records[-1][1], *decoder.decode(batch.records)


def _decoded(batches: Iterator[Batch]) -> Iterator[Decoded]:
    decoder = None
    for batch in batches:
        decoder = decoder or Decoder(batch.secret)
        yield decode_batch(batch, decoder)
