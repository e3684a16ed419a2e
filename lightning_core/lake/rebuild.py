"""The manifest of the spans, made anew from their files where it is lost and its copy too.

A row is named by its place in the spool, so a place stands once, whatever lies about: files that a compaction replaced, or one that was
never named. The catalog still names the files that were in use when it was built. One that is older and not among them was replaced, and
stays away: what retention removed does not come back.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lightning_core.files import rename
from lightning_core.lake import catalog, compact, schema
from lightning_core.lake.manifest import LakeError, Retired, SpanFile, SpanManifest
from lightning_core.spool import spool
from lightning_core.spool.spool_format import segments

if TYPE_CHECKING:
    from lightning_core.lake.lake import Lake

UNKNOWN_RULES = "unknown"  # may have been redacted: no decoding without rules, or `--unredacted`


def span_manifest(lake: Lake) -> Iterator[str]:
    """Put a manifest that names the files there are; yields what was done. The caller holds the lake's locks."""
    found = sorted(path for path in (lake.root / "spans").glob("*.parquet") if not path.name.startswith("."))
    if not found:
        return
    manifest = SpanManifest(redaction=UNKNOWN_RULES)
    in_use = _in_use(lake.root, found)
    for path in found:
        file = _file(lake.root, path)
        if isinstance(file, str):
            rename(path, lake.root / "damaged" / path.name)
            named = re.match(r"(\d{20})-(\d{20})", path.name)
            start, end = (int(named[1]), int(named[2])) if named is not None else (0, 0)
            manifest.lost.append(SpanFile(path=f"spans/{path.name}", rows=0, bytes=0, start=start, end=end))
            yield f"spans/{path.name}: cannot be read ({file}); moved to {lake.root / 'damaged'}, its spans are lost"
        elif path in in_use:
            manifest.files.append(file)
        else:
            manifest.retired.append(Retired(path=file.path, since_ns=time.time_ns()))
    manifest.decoded_offset = _decoded_offset(lake, found)
    lake.manifests.put_spans(manifest)
    rows = sum(file.rows for file in manifest.files)
    yield (
        f"manifests/spans.json: made anew from {len(manifest.files)} files, {rows:,} spans; {len(manifest.retired)} other files are not "
        "used. Whether spans were redacted is not known: give the settings with the rules to the next `lightning-flows ingest`, or "
        "`--unredacted` where there were none"
    )


def each_place_once(lake: Lake) -> Iterator[str]:
    """Move files away, or what they have of others, so that a place stands once; yields what was done.

    The caller holds the locks.
    """
    manifest = lake.manifests.spans()
    named = {file.path: file for file in manifest.files}
    if len(named) < len(manifest.files):
        manifest.files = [*named.values()]
        lake.manifests.put_spans(manifest)
        yield "manifests/spans.json: named a file twice"
    with lake.engine() as con:
        rows = f"SELECT record_offset, record_index, filename FROM ({catalog.span_rows(manifest.files, lake.root)})"
        twice = f"SELECT record_offset, record_index FROM ({rows}) GROUP BY ALL HAVING count(*) > 1"
        places = "SELECT count(*), count(DISTINCT (record_offset, record_index))"
        ((stored, distinct),) = con.execute(f"{places} FROM ({rows})").fetchall()
        if stored == distinct:
            return
        con.execute(
            f"CREATE TABLE suspect AS SELECT * FROM ({rows}) SEMI JOIN ({twice}) USING (record_offset, record_index)"
        )
        con.execute(
            "CREATE TABLE first AS SELECT record_offset, record_index, min(filename) AS filename FROM suspect GROUP BY ALL"
        )
        again = con.sql("FROM suspect ANTI JOIN first USING (record_offset, record_index, filename)").to_arrow_table()
    for file in manifest.files[:]:
        here = pc.equal(again["filename"], str(lake.root.resolve() / file.path))
        gone = again.filter(here).drop_columns("filename")
        if not gone.num_rows:
            continue
        new = compact.rewrite(lake, [file], gone) if gone.num_rows < file.rows else []
        manifest.swap([file], new, time.time_ns())
        manifest.retired = [entry for entry in manifest.retired if entry.path != file.path]
        lake.manifests.put_spans(manifest)
        rename(lake.root / file.path, lake.root / "damaged" / file.path.removeprefix("spans/"))
        yield f"{file.path}: its {gone.num_rows:,} places are those of other files (moved to {lake.root / 'damaged'})"


def _in_use(root: Path, found: list[Path]) -> set[Path]:
    """Return files that the catalog names, and those written since it was built; all where no catalog can be read."""
    built = catalog.built_ns(root)
    try:
        with catalog.connect(root) as con:
            ((ddl,),) = con.execute(
                "SELECT sql FROM duckdb_views() WHERE schema_name = 'stored' AND view_name = 'spans'"
            ).fetchall()
    except (OSError, duckdb.Error, ValueError, LakeError):
        return set(found)
    named = {root / path for path in re.findall(r"'(spans/[^']*)'", ddl)}
    return {path for path in found if path in named or built is None or path.stat().st_mtime_ns >= built}


def _file(root: Path, path: Path) -> SpanFile | str:
    """Return the entry of a span file; the error as text where it cannot be read."""
    try:
        table = pq.read_table(path)
        bounds = pc.min_max(table["record_offset"]).as_py()
        columns = schema.columns_digest() if table.schema.equals(schema.arrow_schema(schema.SPANS)) else "another"
        name = str(path.relative_to(root))
        return SpanFile.at(root, name, table.num_rows, bounds["min"], bounds["max"] + 1, columns=columns)
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        return str(error).partition("\n")[0][:200]


def _decoded_offset(lake: Lake, found: list[Path]) -> int:
    """Return how far the spool is decoded, as the names of files of spans and of rejected spans show.

    It is the end of a record of the spool.
    """
    rejected = [path.name for path in (lake.spool / "rejected").glob("*.jsonl")]
    names = [re.match(r"\d{20}-(\d{20})", name) for name in [*(path.name for path in found), *rejected]]
    reached = max((int(name[1]) for name in names if name is not None), default=0)
    kept = segments(lake.spool)
    if not kept or kept[0][0] >= reached:
        return max(reached, kept[0][0] if kept else 0)
    return next((behind for _, behind, _ in spool.read(lake.spool, kept[0][0]) if behind >= reached), reached)
