"""What is kept of a lake, and how long: spans go by age, runs go whole. Policies are never touched.

Only files that hold what goes are written anew. The old ones, and the tables of a run that goes, are retired as after a
compaction: whoever reads them can finish. The manifest remembers what went of which epoch, so that nothing is derived
from an epoch that is no longer whole.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from lightning_core.events import named
from lightning_core.files import write_atomic
from lightning_core.lake import catalog, compact, sql
from lightning_core.lake.manifest import EpochManifest, LakeError, Removed, Retired, SpanFile

if TYPE_CHECKING:
    from lightning_core.lake.lake import Lake

_DAY_NS = 86_400_000_000_000


@dataclass
class Leaving:
    """What retention removes, or would remove."""

    rows: dict[tuple[str | None, int | None, str | None], int] = field(default_factory=dict)  # by (run, epoch, mode)
    files: list[tuple[SpanFile, int]] = field(default_factory=list)  # with the number of rows that go
    epochs: list[EpochManifest] = field(default_factory=list)  # that go with their run, tables and all
    table_bytes: int = 0
    unfinished: list[EpochManifest] = field(default_factory=list)  # whose spans stay, however old
    places: pa.Table | None = None  # record_offset, record_index
    rejected: list[tuple[Path, int, list[str]]] = field(default_factory=list)  # file, spans that go, lines that stay

    @property
    def spans(self) -> int:
        return sum(self.rows.values())

    @property
    def bytes(self) -> int:
        """Return about how many bytes are freed on disk."""
        return self.table_bytes + sum(f.bytes * gone // max(f.rows, 1) for f, gone in self.files)

    def lines(self) -> list[str]:
        """Return lines for people: the whole, then epoch by epoch."""
        tables = sum(len(e.tables) for e in self.epochs)
        found = [
            f"{self.spans:,} spans in {len(self.files)} files and {tables} tables, about {self.bytes / 1e6:,.1f} MB",
        ]
        for (run, epoch, mode), rows in sorted(self.rows.items(), key=str):
            owner = (
                f"run {run}, {named(mode, epoch)}"
                if run and mode and epoch is not None
                else "of no rollout that is known"
            )
            found.append(f"  {rows:>12,} spans {owner}")
        for name in sorted({e.run for e in self.epochs}):
            found.append(f"  {sum(e.run == name for e in self.epochs):>12,} epochs of run {name}, with their tables")
        if self.rejected:
            found.append(f"  {sum(gone for _, gone, _ in self.rejected):>12,} spans that could not be decoded")
        for e in self.unfinished:
            found.append(f"  kept: spans of run {e.run}, {e.named}, which is not finished")
        return found


def retain(
    lake: Lake, older_than_days: float | None = None, runs: Sequence[str] = (), dry_run: bool = False
) -> Leaving:
    """Remove spans older than so many days, and everything of some runs but their policies; returns what went.

    Raises LakeError where a run is not known or a process works on it, ValueError where neither is given. The spans of
    an unfinished epoch do not age.
    """
    if older_than_days is None and not runs:
        raise ValueError("neither an age nor a run is given")
    with contextlib.ExitStack() as stack:
        for run in sorted(set(runs)):
            if not dry_run:
                stack.enter_context(lake.working_on(run))
        stack.enter_context(compact.rewriting(lake))
        leaving = _plan(lake, older_than_days, runs)
        if not dry_run and (leaving.files or leaving.epochs or leaving.rejected):
            _remove(lake, leaving)
    return leaving


def require_spans(lake: Lake, epoch: EpochManifest) -> None:
    """Raise LakeError where retention took spans of the epoch: what is left would be derived from as if it were all."""
    for gone in lake.manifests.spans().removed:
        if (gone.run, gone.epoch, gone.mode) in epoch.scope:
            if epoch.opened_offset >= gone.until_offset:
                continue
            day = datetime.fromtimestamp(gone.at_ns / 1e9, UTC).date()
            raise LakeError(
                f"{named(epoch.mode, gone.epoch or 0)} of run {gone.run!r}: {gone.spans} of its spans were removed by "
                f"`lake retain` on {day}, so it cannot be derived or graded again; the tables it has stay as they are"
            )


def _plan(lake: Lake, older_than_days: float | None, runs: Sequence[str]) -> Leaving:
    manifest = lake.manifests.spans()
    epochs = lake.manifests.epochs()
    leaving = Leaving(epochs=[e for e in epochs if e.run in set(runs)])
    leaving.table_bytes = sum(
        path.stat().st_size for e in leaving.epochs for t in e.tables.values() if (path := lake.path(t)).is_file()
    )
    before_ns = None if older_than_days is None else time.time_ns() - int(older_than_days * _DAY_NS)
    parts = []
    with lake.engine() as con:
        con.execute(f"CREATE VIEW stored AS {catalog.span_rows(manifest.files, lake.root)}")
        if runs:
            con.register("leaving_runs", pa.table({"run": pa.array(runs, pa.string())}))
            parts.append(sql.text("lake/leaving_by_run"))
        if before_ns is not None:
            leaving.unfinished = [e for e in epochs if not _finished(e) and e.run not in set(runs)]
            con.register("limits", pa.table({"before_ns": [before_ns]}))
            _unfinished(con, leaving.unfinished)
            parts.append(sql.text("lake/leaving_by_age"))
        con.execute(f"CREATE TABLE leaving AS {' UNION '.join(f'SELECT * FROM ({part})' for part in parts)}")
        counts = con.execute("SELECT run, epoch, mode, count(*) FROM leaving GROUP BY ALL").fetchall()
        leaving.rows = {(run, epoch, mode): rows for run, epoch, mode, rows in counts}
        by_file = dict(con.execute("SELECT filename, count(*) FROM leaving GROUP BY filename").fetchall())
        leaving.files = [(f, by_file[name]) for f in manifest.files if (name := _absolute(lake, f)) in by_file]
        leaving.places = con.sql("SELECT record_offset, record_index FROM leaving").to_arrow_table()
        owned = (
            "SELECT DISTINCT rollout_id FROM stored WHERE op IN ('rollout', 'rollout.start') AND list_contains(?, run)"
        )
        rollouts = {row[0] for row in con.execute(owned, [list(runs)]).fetchall()}
    leaving.rejected = list(_rejected(lake, rollouts | {r for e in leaving.epochs for r in e.planned}, before_ns))
    known = {e.run for e in epochs} | {run for run, _, _ in leaving.rows}
    unknown = sorted(set(runs) - known)
    if unknown:
        raise LakeError(
            f"{lake.root}: nothing is known of run {unknown[0]!r}; "
            f"runs here: {', '.join(sorted({e.run for e in epochs})) or 'none'}"
        )
    return leaving


def _finished(epoch: EpochManifest) -> bool:
    """Return whether an epoch has its tables, so that its spans are not needed to go on."""
    return epoch.sealed_offset is not None and "sequences" in epoch.stages


def _absolute(lake: Lake, file: SpanFile) -> str:
    return str(lake.root.resolve() / file.path)


def _rejected(lake: Lake, rollouts: set[str], before_ns: int | None) -> Iterator[tuple[Path, int, list[str]]]:
    """Yield files of spans that could not be decoded, where some are old enough or of a rollout that goes."""
    for path in sorted((lake.spool / "rejected").glob("*.jsonl")):
        gone, kept = 0, []
        for line in path.read_bytes().decode().split("\n")[:-1]:
            found = json.loads(line)
            old = before_ns is not None and found["received_ns"] < before_ns
            if old or found.get("rollout_id") in rollouts:
                gone += found.get("count", 1)
            else:
                kept.append(line)
        if gone:
            yield path, gone, kept


def _unfinished(con: duckdb.DuckDBPyConnection, epochs: list[EpochManifest]) -> None:
    rows = [(e.run, e.epoch, e.mode, rollout) for e in epochs for rollout in [None, *e.planned]]
    columns = {
        "run": pa.array([r[0] for r in rows], pa.string()),
        "epoch": pa.array([r[1] for r in rows], pa.int64()),
        "mode": pa.array([r[2] for r in rows], pa.string()),
        "rollout_id": pa.array([r[3] for r in rows], pa.string()),
    }
    con.register("unfinished", pa.table(columns))


def _remove(lake: Lake, leaving: Leaving) -> None:
    """Remove `leaving`: from the manifest first, as a file that it no longer names can wait; then the epochs.

    A second call ends what a killed one began.
    """
    gone = [f for f, _ in leaving.files]
    new: list[SpanFile] = []
    for file, rows in leaving.files:
        if rows < file.rows:
            new += compact.rewrite(lake, [file], leaving.places)
    with compact.swapping(lake, gone, new) as manifest:
        now = time.time_ns()
        tables = sorted(t.path for e in leaving.epochs for t in e.tables.values())
        manifest.retired += [Retired(path=path, since_ns=now) for path in tables]
        for (run, epoch, mode), spans in leaving.rows.items():
            former = [r for r in manifest.removed if (r.run, r.epoch, r.mode) == (run, epoch, mode)]
            manifest.removed = [r for r in manifest.removed if r not in former]
            total = spans + sum(r.spans for r in former)
            until = manifest.decoded_offset
            manifest.removed.append(
                Removed(run=run, epoch=epoch, mode=mode, spans=total, until_offset=until, at_ns=now)
            )
    for dropped in leaving.epochs:
        lake.manifests.drop_epoch(dropped)
    for path, _, kept in leaving.rejected:
        if kept:
            write_atomic(path, "".join(line + "\n" for line in kept).encode())
        else:
            path.unlink(missing_ok=True)
    lake.rebuild_catalog()
