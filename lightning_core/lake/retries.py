"""A span that is sent again is stored once.

Exporters send a batch again when its answer is lost; the light tracer does so hours later. A retry has the identity and
the content of a row that is there already, so it has its start time too: only files about that time are looked at.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lightning_core.lake import catalog, schema, sql
from lightning_core.lake.manifest import SpanFile

IDENTITY = (
    "rollout_id",
    "attempt_id",
    "trace_id",
    "span_id",
    "content_hash",
    "sender",
    "record_offset",
    "record_index",
)
# Among the columns of a file: no list or map, which would be several, comes before it.
_START = [column.name for column in schema.SPANS].index("start_ns")


def without(table: pa.Table, root: Path, files: list[SpanFile]) -> pa.Table:
    """Return `table` without the rows that repeat one before them, in it or in the span files (relative to `root`)."""
    if not table.num_rows or not _any_again(table, root, files):
        return table
    with duckdb.connect(config={"file_search_path": str(root)}) as con:
        con.register("arriving", table.select(IDENTITY))
        bounds = _bounds(table)
        about = "true" if bounds is None else f"start_ns BETWEEN {bounds['min']} AND {bounds['max']}"
        con.execute(view("stored", files, about))
        gone = set(con.sql(sql.text("lake/retries")).fetchall())
    if not gone:
        return table
    places = zip(table["record_offset"].to_pylist(), table["record_index"].to_pylist(), strict=True)
    return table.filter(pa.array([place not in gone for place in places]))


def _any_again(table: pa.Table, root: Path, files: list[SpanFile]) -> bool:
    """Return whether a hash of `table` is in it twice, or in a row group about its time.

    Mostly none is, and this is quick.
    """
    hashes, bounds = table["content_hash"].to_numpy(), _bounds(table)
    if len(np.unique(hashes)) < len(hashes):
        return True
    for file in files:
        with pq.ParquetFile(root / file.path) as parquet:
            groups = [i for i in range(parquet.num_row_groups) if _about(parquet.metadata.row_group(i), bounds)]
            stored = parquet.read_row_groups(groups, ["content_hash"]) if groups else None
        if stored is not None and stored.num_columns and np.isin(hashes, stored[0].to_numpy()).any():
            return True
    return False


def _bounds(table: pa.Table) -> dict[str, int] | None:
    """Return between which times the spans start; None where one has no time."""
    return None if table["start_ns"].null_count else pc.min_max(table["start_ns"]).as_py()


def _about(group: pq.RowGroupMetaData, bounds: dict[str, int] | None) -> bool:
    """Return whether a row group may hold a span that starts within these bounds."""
    column = group.column(_START)
    if bounds is None or column.path_in_schema != "start_ns" or not column.is_stats_set:
        return True
    statistics = column.statistics
    return not statistics.has_min_max or (statistics.min <= bounds["max"] and statistics.max >= bounds["min"])


def view(name: str, files: list[SpanFile], where: str = "true") -> str:
    """Return the DDL of a view of the columns that identify a retry, over span files."""
    columns = ", ".join(IDENTITY)
    return f"CREATE VIEW {name} AS SELECT {columns} FROM ({catalog.span_rows(files)}) WHERE {where}"
