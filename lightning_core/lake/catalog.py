"""`catalog.duckdb`: views over the files that the manifests name, for anyone who can open a DuckDB file.

What lies in the files is in the schema `stored`, under its own names. Everybody reads the views of sql/views instead, where one
name means one thing; of a stored table that has no such view, the view is the table. The questions of sql/analysis are table
macros over the views: `FROM epoch_report(p_run := 'first-try')`. Paths in it are relative to the lake: `lightning-flows sql` sets
`file_search_path`, and `duckdb catalog.duckdb` is started in the lake's folder. It is built beside and renamed into place, so a
reader has the old one or the new.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Protocol

import duckdb

from lightning_core.errors import Missing
from lightning_core.files import make_folder, put_in_place
from lightning_core.home_format import require_readable
from lightning_core.lake import schema, sql
from lightning_core.lake.derived_tables import COLUMNS, EMPTY
from lightning_core.lake.manifest import EpochManifest, LakeError, Manifests, SpanFile, SpanManifest
from lightning_core.spool.spool_format import DAMAGED

VIEWS = sql.views()
_TABLES = """
CREATE TABLE epoch_manifests (
    run VARCHAR, epoch BIGINT, mode VARCHAR, opened_offset BIGINT, sealed_offset BIGINT,
    versions MAP(VARCHAR, VARCHAR), trained MAP(VARCHAR, VARCHAR), planned_rollouts INTEGER, weights MAP(VARCHAR, DOUBLE), stages JSON,
    settings MAP(VARCHAR, VARCHAR)
);
CREATE TABLE rejections (
    record_offset BIGINT, record_index INTEGER, spans BIGINT, reason VARCHAR, received_ns BIGINT,
    rollout_id VARCHAR, attempt_id VARCHAR
);
CREATE TABLE span_columns (column_name VARCHAR, meaning VARCHAR);
"""


class RemoteFiles(Protocol):
    """An fsspec file system that knows the URL under which it has a lake's files."""

    url: str


EMPTY_SPANS = f"SELECT {', '.join(f'NULL::{c.type} AS {c.name}' for c in schema.SPANS)} WHERE false"


def span_rows(files: list[SpanFile], root: Path | None = None) -> str:
    """Return a SELECT of the rows of span files, whose paths are relative to the lake.

    With `root` the paths are absolute, and the rows have a column `filename`.
    """
    named = root is not None
    if not files:
        return EMPTY_SPANS.replace(" WHERE", ", '' AS filename WHERE") if named else EMPTY_SPANS
    paths = file_list([str(root.resolve() / f.path) if root is not None else f.path for f in files])
    options = ", filename = true" if named else ""
    if all(f.columns == schema.columns_digest() for f in files):
        return f"SELECT * FROM read_parquet({paths}{options})"
    # Files of another version have other columns: those they lack are NULL.
    columns = ", ".join([c.name for c in schema.SPANS] + ["filename"] * named)
    everything = f"FROM read_parquet({paths}, union_by_name = true{options}) UNION ALL BY NAME {EMPTY_SPANS}"
    return f"SELECT {columns} FROM ({everything})"


def spans_view(files: list[SpanFile], span_range: tuple[int, int | None] = (0, None), name: str = "spans") -> str:
    """Return the DDL of the view `name` over a range of the spool in some files; it is empty where there is no file."""
    start, end = span_range
    bounds = [f"record_offset >= {start}"] * (start > 0) + [f"record_offset < {end}"] * (end is not None)
    rows = span_rows(files)
    if files and bounds:
        rows = f"FROM ({rows}) WHERE {' AND '.join(bounds)}"
    return f"CREATE OR REPLACE VIEW {name} AS {rows}"


def build(
    root: Path, manifests: Manifests, rejected: Path, folder: Path | None = None, at: RemoteFiles | None = None
) -> Path:
    """Build the catalog and rename it into place; returns its path. `rejected`: folder of the spans not decoded.

    folder: where it is put; default: `root`. at: its views name the files by URL, which this file system resolves.
    """
    folder = folder or root
    make_folder(folder)
    began = time.time_ns()
    beside = folder / f".catalog-{secrets.token_hex(4)}.duckdb"

    def placed(path: str) -> str:
        return path if at is None else f"{at.url}/{path}"

    try:
        beside.write_bytes(_over_nothing())
        with duckdb.connect(str(beside), config={"file_search_path": str(root)}) as con:
            if at is not None:
                con.register_filesystem(at)
            spans, epochs = manifests.spans(), manifests.epochs()
            files = [f.model_copy(update={"path": placed(f.path)}) for f in spans.files]
            con.execute(spans_view(files, name="stored.spans"))
            tables: dict[str, list[str]] = {}
            for epoch in epochs:
                for name, table in epoch.tables.items():
                    tables.setdefault(name.partition(" ")[0], []).append(placed(table.path))
            for name, paths in tables.items():
                columns, rows = "*", f"FROM read_parquet({file_list(paths)}, union_by_name = true)"
                if name in COLUMNS:  # else a later version's: it is shown as it is
                    columns = ", ".join(column for column, _ in COLUMNS[name])
                    rows += f" UNION ALL BY NAME SELECT {EMPTY[name]} WHERE false"
                con.execute(f"CREATE OR REPLACE VIEW stored.{name} AS SELECT {columns} FROM ({rows})")
            _epoch_manifests(con, epochs)
            _rejections(con, rejected, spans)
        os.utime(beside, ns=(began, began))  # when it read the manifests: see `built_ns`
        put_in_place(beside, folder / "catalog.duckdb")
    finally:
        beside.unlink(missing_ok=True)
        beside.with_suffix(".duckdb.wal").unlink(missing_ok=True)
    return folder / "catalog.duckdb"


@cache
def _over_nothing() -> bytes:
    """Return the file of a catalog without spans and epochs, with every view and question.

    DuckDB binds what it creates, down to the Parquet files, and binds it anew when it is asked: so views and questions
    are made once a process, where there are no files, and see what `build` puts below them.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "catalog.duckdb"
        with duckdb.connect(str(file)) as con:
            sql.create_shared(con)
            con.execute("CREATE SCHEMA stored")
            con.execute(spans_view([], name="stored.spans"))
            for name, columns in EMPTY.items():
                con.execute(f"CREATE VIEW stored.{name} AS SELECT {columns} WHERE false")
            for name in ("spans", *EMPTY):
                if name not in VIEWS:
                    con.execute(f"CREATE VIEW {name} AS FROM stored.{name}")
            con.execute(_TABLES)
            con.executemany("INSERT INTO span_columns VALUES (?, ?)", [[c.name, c.meaning] for c in schema.SPANS])
            for view in VIEWS:
                sql.create(con, f"views/{view}", "VIEW")
            for question in sql.names("analysis"):
                sql.create_macro(con, question)
        return file.read_bytes()


def _epoch_manifests(con: duckdb.DuckDBPyConnection, epochs: list[EpochManifest]) -> None:
    """Fill the table `epoch_manifests`, by which views count `late` and `rejected`."""
    for m in epochs:
        stages = json.dumps({name: stage.model_dump() for name, stage in m.stages.items()}, default=str)
        con.execute(
            "INSERT INTO epoch_manifests VALUES (?, ?, ?, ?, ?, map(?::VARCHAR[], ?::VARCHAR[]), map(?::VARCHAR[], ?::VARCHAR[]), ?, map(?::VARCHAR[], ?::DOUBLE[]), ?, map(?::VARCHAR[], ?::VARCHAR[]))",
            [
                m.run,
                m.epoch,
                m.mode,
                m.opened_offset,
                m.sealed_offset,
                list(m.versions),
                list(m.versions.values()),
                list(m.trained),
                list(m.trained.values()),
                len(m.planned),
                list(m.draw.weights) if m.draw else None,
                list(m.draw.weights.values()) if m.draw else None,
                stages,
                list(m.settings),
                list(m.settings.values()),
            ],
        )


def _rejections(con: duckdb.DuckDBPyConnection, rejected: Path, manifest: SpanManifest) -> None:
    """Fill `rejections`: what could not be decoded, or was lost since; one row may stand for several `spans`."""
    for file in manifest.lost:
        begun = "SELECT DISTINCT opened_offset FROM epoch_manifests WHERE opened_offset > ? AND opened_offset < ?"
        opened = con.execute(begun, [file.start, file.end]).fetchall()
        # Its spans are counted once; epochs that began within it have a row too, so that they know.
        for offset, spans in [(file.start, file.rows), *((offset, 0) for (offset,) in opened)]:
            con.execute("INSERT INTO rejections VALUES (?, NULL, ?, ?, 0, NULL, NULL)", [offset, spans, DAMAGED])
    # A file is named after the range of the spool that it is about; one behind the manifest's is a decoding that did not come to its end.
    files = [str(path) for path in sorted(rejected.glob("*.jsonl")) if int(path.name[:20]) < manifest.decoded_offset]
    if files:
        con.execute(
            """
            INSERT INTO rejections
            SELECT "offset", "index", coalesce("count", 1), reason, received_ns, rollout_id, attempt_id
            FROM read_json(?, format = 'newline_delimited', maximum_object_size = 1073741824, columns = {
                "offset": 'BIGINT', "index": 'INTEGER', "count": 'BIGINT', reason: 'VARCHAR', received_ns: 'BIGINT',
                rollout_id: 'VARCHAR', attempt_id: 'VARCHAR'
            })
            """,
            [files],
        )


def built_ns(root: Path) -> int | None:
    """Return when the catalog read the manifests, ns since 1970; None where there is no catalog.

    Files retired after that may be in it.
    """
    try:
        return (root / "catalog.duckdb").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def connect(root: Path | str) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """Open the catalog of a lake's folder, or of the URL that one was published to (a str), read-only.

    Raises FileNotFoundError before the first ingest, HomeError where a newer version wrote it, LakeError where nothing
    was published.
    """
    if isinstance(root, str):
        from lightning_core.lake import storage  # few need it, and it brings fsspec

        return storage.connect(root)
    require_readable(root.parent)
    path = root / "catalog.duckdb"
    if not path.is_file():
        raise Missing(f"{path}: no catalog yet; it is made when the first spans are decoded (run an epoch)")
    return opened(path, root)


def opened(path: Path, root: Path) -> duckdb.DuckDBPyConnection:
    """Open a catalog's file, read-only; its relative paths are those in `root`. Raises LakeError for a damaged one."""
    try:
        return duckdb.connect(str(path), read_only=True, config={"file_search_path": str(root)})
    except duckdb.Error as error:
        raise LakeError(
            f"{path}: the catalog cannot be read ({error}); `lightning-flows ingest` makes it anew"
        ) from None


@contextlib.contextmanager
def connect_alone(root: Path | str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Connect as `connect` does, to a database of its own.

    The reason: connections of a process to one file share their configuration.
    """
    with contextlib.ExitStack() as stack:
        con = stack.enter_context(connect(root))
        if not isinstance(root, str):
            con.close()
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(dir=_spill(root), ignore_cleanup_errors=True))
            )
            shutil.copyfile(root / "catalog.duckdb", folder / "catalog.duckdb")
            con = stack.enter_context(opened(folder / "catalog.duckdb", root))
        yield con


def _spill(root: Path) -> Path | None:
    """Return the lake's folder for what queries spill; None, for the system's, where it may not be written."""
    folder = root / "tmp"
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def file_list(files: list[str]) -> str:
    """Return a list of paths as SQL; for DDL, which takes no parameters."""
    return "[" + ", ".join("'" + f.replace("'", "''") + "'" for f in files) + "]"
