"""A span that is sent again is stored once.

Exporters send a batch again when its answer is lost; the light tracer does so hours later. A retry has the identity and
the content of a row that is there already, so it has its start time too: only files about that time are looked at.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from lightning_core.lake import catalog, sql
from lightning_core.lake.manifest import SpanFile

IDENTITY = ("rollout_id", "attempt_id", "trace_id", "span_id", "content_hash", "record_offset", "record_index")


def without(table: pa.Table, root: Path, files: list[SpanFile]) -> pa.Table:
    """`table` without the rows that repeat one before them, in it or in the span files (relative to `root`)."""
    hashes = table["content_hash"]
    if not table.num_rows or (not files and pc.count_distinct(hashes).as_py() == len(hashes)):
        return table
    with duckdb.connect(config={"file_search_path": str(root)}) as con:
        con.register("arriving", table.select(IDENTITY))
        starts = table["start_ns"]
        bounds = pc.min_max(starts).as_py()
        if starts.null_count:
            con.execute(view("stored", files))
        else:
            con.execute(view("stored", files, f"start_ns BETWEEN {bounds['min']} AND {bounds['max']}"))
        gone = set(con.sql(sql.text("lake/retries")).fetchall())
    if not gone:
        return table
    places = zip(table["record_offset"].to_pylist(), table["record_index"].to_pylist(), strict=True)
    return table.filter(pa.array([place not in gone for place in places]))


def view(name: str, files: list[SpanFile], where: str = "true") -> str:
    """DDL of a view of the columns that tell a retry, over span files."""
    columns = ", ".join(IDENTITY)
    return f"CREATE VIEW {name} AS SELECT {columns} FROM ({catalog.span_rows(files)}) WHERE {where}"
