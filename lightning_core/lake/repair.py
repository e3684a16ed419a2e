"""What `lightning-flows lake repair` does: damaged manifests back from their copies, span files that are not what was written out of
the way, rejected spans decoded anew. Each step can be killed and begun again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lightning_core.files import locked, rename, write_atomic
from lightning_core.lake import parquet, rebuild, retries
from lightning_core.lake.decode import Decoder, Placed
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError, SpanFile, SpanManifest, checked
from lightning_core.lake.redact import Redaction
from lightning_core.lake.verify import what_is_wrong
from lightning_core.spool.spool import Record
from lightning_core.spool.spool_format import segments


def repair(lake: Lake, redaction: Redaction | None = None) -> Iterator[str]:
    """Repair a lake; yields what was done, a line each.

    redaction: rules for what is decoded anew. Raises LakeError where the lake is redacted and rejected spans wait
    without them.
    """
    with locked(lake.root / "compact.lock"), locked(lake.root / "lock"):
        yield from _manifests(lake)
        yield from _set_aside(lake)
        yield from rebuild.each_place_once(lake)
        yield from _behind_what_is_gone(lake)
        yield from _rejected(lake, redaction)
    lake.rebuild_catalog()


def _manifests(lake: Lake) -> Iterator[str]:
    manifests, folder = lake.manifests, lake.root / "manifests"
    copies = {folder / path.relative_to(lake.root / "copies") for path in (lake.root / "copies").rglob("*.json")}
    for path in sorted({*folder.rglob("*.json"), *copies, manifests.spans_path}):
        name, copy = path.relative_to(lake.root), manifests.copy_of(path)
        kind = SpanManifest if path == manifests.spans_path else EpochManifest
        sound, copied = _readable(path, kind), _readable(copy, kind)
        if sound is not None:
            if copied is None:
                write_atomic(copy, sound)
            continue
        damaged = path.exists()
        if damaged:
            rename(path, lake.root / "damaged" / str(name).replace("/", "-"))
        if copied is not None:
            write_atomic(path, copied)
            yield f"{name}: put back from its copy"
        elif kind is SpanManifest:
            yield from rebuild.span_manifest(lake)
        elif damaged:
            copy.unlink(missing_ok=True)
            yield f"{name}: moved to damaged/, it has no copy; the epoch is none of its run's any more, and begins anew if it is the last"


def _readable(path: Path, kind: type[SpanManifest | EpochManifest]) -> bytes | None:
    try:
        content = path.read_bytes()
        kind.model_validate_json(checked(content))
    except (OSError, ValueError):
        return None
    return content


def _set_aside(lake: Lake) -> Iterator[str]:
    """Move away span files that are not what was written; yields what was done.

    Their spans count as lost from now on, and the others can be read.
    """
    manifest = lake.manifests.spans()
    found = {file.path: what for file in manifest.files if (what := what_is_wrong(lake.root, file)) is not None}
    if not found:
        return
    gone = [file for file in manifest.files if file.path in found]
    manifest.files = [file for file in manifest.files if file.path not in found]
    manifest.lost += gone
    lake.manifests.put_spans(manifest)
    for file in gone:
        if (lake.root / file.path).exists():
            rename(lake.root / file.path, lake.root / "damaged" / Path(file.path).name)
        yield f"{file.path}: {found[file.path]}; {file.rows:,} spans lost, what is left of it is in {lake.root / 'damaged'}"


def _behind_what_is_gone(lake: Lake) -> Iterator[str]:
    """Let decoding go on where the spool begins, if that is behind what is decoded; yields what was done.

    It is so where one of the two was put back from a copy.
    """
    manifest, kept = lake.manifests.spans(), segments(lake.spool)
    if not kept or kept[0][0] <= manifest.decoded_offset:
        return
    first, last = manifest.decoded_offset, kept[0][0]
    manifest.lost.append(SpanFile(path="spool", rows=0, bytes=last - first, start=first, end=last))
    manifest.decoded_offset = last
    lake.manifests.put_spans(manifest)
    yield f"spool: it begins at offset {last}, and the lake was decoded up to {first}; {last - first:,} bytes of requests lay between and are lost"


def _rejected(lake: Lake, redaction: Redaction | None) -> Iterator[str]:
    """Decode rejected spans anew, by the decoder of today."""
    manifest = lake.manifests.spans()
    files = [p for p in sorted((lake.spool / "rejected").glob("*.jsonl")) if int(p.name[:20]) < manifest.decoded_offset]
    if files and manifest.redaction is not None and redaction is None:
        raise LakeError(
            f"{lake.root.parent}: {len(files)} files of rejected spans were not decoded anew, since spans of this lake are redacted; give "
            "the settings with their rules (`lightning-flows lake repair --settings FILE`)"
        )
    decoder = Decoder(lake.secret())
    spans = left = 0
    for path in files:
        entries = [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]
        stored, entries = _anew(lake, manifest, path, entries, decoder, redaction)
        spans, left = spans + stored, left + sum(entry.get("count", 1) for entry in entries)
    if spans:
        yield f"{spans:,} spans decoded that were rejected before"
    if left:
        yield f"{left:,} spans stay rejected (table rejections)"


def _anew(
    lake: Lake,
    manifest: SpanManifest,
    path: Path,
    entries: list[dict[str, Any]],
    decoder: Decoder,
    redaction: Redaction | None,
) -> tuple[int, list[dict[str, Any]]]:
    """Decode what one file of rejected spans has; returns how many spans came of it, and what stays rejected.

    A span is stored at the place at which it was rejected, where the lake has no other; so what a killed repair stored
    is not stored again. Of a request only the rejected spans are taken: the others are in the lake, or were removed
    from it.
    """
    requests = {entry["offset"]: request for entry in entries if (request := _request(entry)) is not None}
    placed: list[Placed] = [(offset, offset + 1, record) for offset, record in sorted(requests.items())]
    if not placed:
        return 0, entries
    table, bad = decoder.decode(placed)
    if redaction is not None:
        table, bad = redaction.spans(table), redaction.rejected(bad)
    places = zip(table["record_offset"].to_pylist(), table["record_index"].to_pylist(), strict=True)
    table = table.filter(pa.array([_was_rejected(entries, *place) for place in places], pa.bool_()))
    tried = table.num_rows
    table = retries.without(_not_stored(lake, table, manifest.files), lake.root, manifest.files)
    left = [entry for entry in entries if entry["offset"] not in requests]
    left += [
        entry for entry in bad if entry["index"] is None or _was_rejected(entries, entry["offset"], entry["index"])
    ]
    if not tried and len(left) == len(entries):
        return 0, entries
    if table.num_rows:
        which = str(table.select(["record_offset", "record_index"]).to_pydict())
        name = f"spans/{path.stem}-{hashlib.sha256(which.encode()).hexdigest()[:12]}.parquet"
        parquet.write_table(lake.root / name, table)
        offsets = table["record_offset"].to_numpy()
        file = SpanFile.at(lake.root, name, table.num_rows, int(offsets.min()), int(offsets.max()) + 1)
        manifest.swap([], [file], time.time_ns())
        manifest.rejected_spans -= table.num_rows
        lake.manifests.put_spans(manifest)
    if left:
        write_atomic(path, "".join(json.dumps(entry) + "\n" for entry in left).encode())
    else:
        path.unlink()
    return table.num_rows, left


def _request(entry: dict[str, Any]) -> Record | None:
    """Return the request that an entry came from; None where its bytes were not kept, or are damaged."""
    body = entry.get("span") if entry["index"] is None else entry.get("request")
    if body is None or entry.get("source") == "damaged":
        return None
    scope = entry.get("scope", "path" if entry["rollout_id"] else "none")  # an older version kept neither
    return Record(
        entry["rollout_id"],
        entry["attempt_id"],
        scope,
        entry["received_ns"],
        entry.get("source", "otlp"),
        bytes.fromhex(body),
    )


def _was_rejected(entries: list[dict[str, Any]], offset: int, index: int) -> bool:
    def covers(entry: dict[str, Any]) -> bool:
        first = entry["index"]
        return first is None or first == index or (entry.get("count", 1) > 1 and index >= first)

    return any(entry["offset"] == offset and covers(entry) for entry in entries)


def _not_stored(lake: Lake, table: pa.Table, files: list[SpanFile]) -> pa.Table:
    """Return the rows at whose places the lake has no span."""
    if not table.num_rows:
        return table
    offsets = table["record_offset"].to_numpy()
    about = [f for f in files if f.start <= offsets.max() and f.end > offsets.min()]
    with lake.engine() as con:
        con.execute(retries.view("stored", about))
        con.register(
            "arriving",
            table.select(["record_offset", "record_index"]).append_column("row", pa.array(np.arange(len(offsets)))),
        )
        rows = con.sql(
            "SELECT row FROM arriving ANTI JOIN stored USING (record_offset, record_index) ORDER BY row"
        ).fetchall()
    return table.take(pa.array([row for (row,) in rows], pa.int64()))
