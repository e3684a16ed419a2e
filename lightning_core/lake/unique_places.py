"""(record_offset, record_index) names one row of the lake; every join on it relies on that."""

from __future__ import annotations

import duckdb

from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError


def require_unique(con: duckdb.DuckDBPyConnection, lake: Lake, epoch: EpochManifest) -> None:
    """Raise LakeError where two rows of the lake have one place, naming it and their files.

    Costs nothing where none have: `nodes` is `node_keys` joined with `spans` by place, so it has more rows then.
    """
    sizes = con.execute("SELECT (SELECT count(*) FROM nodes), (SELECT count(*) FROM node_keys)").fetchall()[0]
    if sizes[0] == sizes[1]:
        return
    files = lake.files_between(*epoch.span_range)
    offset, index, rows, names = con.execute(
        f"""
        SELECT record_offset, record_index, count(*), string_agg(DISTINCT parse_filename(filename), ', ' ORDER BY parse_filename(filename))
        FROM ({catalog.span_rows(files, lake.root)})
        GROUP BY record_offset, record_index
        HAVING count(*) > 1
        ORDER BY record_offset, record_index
        LIMIT 1
        """
    ).fetchall()[0]
    raise LakeError(
        f"{lake.root / 'spans'}: {rows} rows stand at record_offset {offset}, record_index {index} (in {names}), and a place "
        "names one span: a file is in the manifest twice, or comes from another lake. "
        f"`lightning-flows lake repair --home {lake.root.parent}` moves it away; then derive again"
    )
