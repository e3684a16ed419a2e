"""Spool → typed Arrow rows.

A request is decoded span by span, thousands of spans at a time; a span that cannot be decoded is rejected alone, with
the reason, and the rest of its request goes on. The output for a range of the spool depends on nothing but that range,
so a replay after a crash writes the same file. `docs/ingest.md` says what comes of every kind of bad input.
"""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lightning_core.files import write_atomic
from lightning_core.lake import schema, sql
from lightning_core.lake.attributes import BrokenSpans
from lightning_core.lake.located import Located, locate
from lightning_core.lake.number_facts import number_facts
from lightning_core.lake.otlp_envelope import OtlpError, count_spans, parse_envelope
from lightning_core.lake.pivot import aliases
from lightning_core.lake.span_columns import span_columns
from lightning_core.lake.texts import taken_views
from lightning_core.lake.wire import PAD, Ints
from lightning_core.spool.spool import Record

logger = logging.getLogger(__name__)

_AT_ONCE = 32 << 20  # bytes of requests decoded together,
_SPANS_AT_ONCE = 1 << 17  # and spans,
_SPAN_BYTES_AT_ONCE = 8 << 20  # and what these hold: empty events or maps take 200 times their bytes
_CONCLUDED_AT_ONCE = (
    1 << 18
)  # spans of which SQL concludes together; a file with more of them is sorted in as many parts

Placed = tuple[int, int, Record]  # offset, next offset, record: as `spool.read` yields them


class Decoder:
    """Decodes records of the spool into one Arrow table of typed spans. Not to be shared between threads."""

    def __init__(self) -> None:
        self._aliases = aliases()
        con = duckdb.connect(config={"threads": 1})
        con.execute(f"CREATE TABLE agent_rules AS {sql.text('hierarchy/agent_rules')}")
        self._engine = [con]
        # Its binding complains, on stderr, of connections that are still there when the interpreter has ended.
        weakref.finalize(self, self._engine.clear)

    def decode(self, records: Iterable[Placed]) -> tuple[pa.Table, list[dict[str, Any]]]:
        """Typed spans (schema.SPANS), and what was rejected.

        Each rejected: `offset` and `index` (place in the request; None for the whole of it), `count` (1, or more where
        one entry stands for several), `reason`, `received_ns`, `rollout_id`, `attempt_id`, `span` (its bytes in hex).
        A record on which the decoder itself fails is rejected whole: it must not come back for ever and hold up the rest.
        """
        placed = list(records)
        try:
            return self._decode(placed)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            if len(placed) <= 1:
                return schema.arrow_schema(schema.SPANS).empty_table(), [_failed(*placed[0], error)]
            logger.debug("a record of %d cannot be decoded", len(placed), exc_info=True)
        middle = len(placed) // 2
        (first, bad), (second, worse) = self.decode(placed[:middle]), self.decode(placed[middle:])
        return pa.concat_tables([first, second]), bad + worse

    def _decode(self, records: list[Placed]) -> tuple[pa.Table, list[dict[str, Any]]]:
        tables: list[pa.Table] = []
        rejected: list[dict[str, Any]] = []
        for part in _parts(records):
            table, bad = _decode(part)
            rejected.extend(bad)
            tables.append(table)
        if not tables:
            return schema.arrow_schema(schema.SPANS).empty_table(), rejected
        decoded = _concatenated(tables)
        parts = range(0, max(decoded.num_rows, 1), _CONCLUDED_AT_ONCE)
        concluded = [_conclude(self._engine[0], decoded.slice(first, _CONCLUDED_AT_ONCE)) for first in parts]
        return pa.concat_tables(concluded), rejected


def _failed(offset: int, _: int, record: Record, error: Exception) -> dict[str, Any]:
    """The entry of a record that the decoder failed on."""
    logger.error("the decoder failed on the record at offset %d; it is set aside", offset, exc_info=error)
    try:
        count = max(count_spans(parse_envelope(record.body)), 1)
    except OtlpError:
        count = 1
    return {
        "offset": offset,
        "index": None,
        "count": count,
        "reason": f"the decoder failed on the whole request: {type(error).__name__}: {error!s:.300}",
        "received_ns": record.received_ns,
        "rollout_id": record.rollout_id,
        "attempt_id": record.attempt_id,
        "span": record.body.hex(),
    }


def _parts(records: Iterable[Placed]) -> Iterator[list[tuple[int, Record]]]:
    part: list[tuple[int, Record]] = []
    size = 0
    for offset, _, record in records:
        if part and size + len(record.body) > _AT_ONCE:
            yield part
            part, size = [], 0
        part.append((offset, record))
        size += len(record.body)
    if part:
        yield part


def _decode(records: list[tuple[int, Record]]) -> tuple[pa.Table, list[dict[str, Any]]]:
    data = b"".join([*(record.body for _, record in records), bytes(PAD)])
    view = np.frombuffer(data, np.uint8)
    found = locate(records, data)
    tables = [_columns(found, view, alive) for alive in _blocks(found)]
    return _concatenated(tables), found.all_rejected()


def _concatenated(tables: list[pa.Table]) -> pa.Table:
    """One table; a column that none of them has stays of type null, which takes no memory."""
    return pa.concat_tables(tables, promote_options="permissive")


def _blocks(found: Located) -> list[Ints]:
    """All spans, cut by their number and their bytes; there is always one block."""
    start, stop = (np.frombuffer(a, np.int32).astype(np.int64) for a in (found.start, found.stop))
    by_bytes = np.cumsum(stop - start) // _SPAN_BYTES_AT_ONCE
    by_number = np.arange(len(start)) // _SPANS_AT_ONCE
    cuts = np.flatnonzero((np.diff(by_bytes) > 0) | (np.diff(by_number) > 0)) + 1
    return np.split(np.arange(len(start)), cuts)


def _columns(found: Located, view: npt.NDArray[np.uint8], alive: Ints) -> pa.Table:
    """The columns of the spans `alive`, less those that turn out to be broken: these are rejected."""
    while True:
        try:
            return span_columns(found, view, alive)
        except BrokenSpans as error:
            for position, reason in sorted(error.reasons.items()):
                span = int(alive[position])
                found.reject(found.record[span], found.index[span], reason, found.start[span], found.stop[span])
            alive = np.delete(alive, list(error.reasons))


def _conclude(con: duckdb.DuckDBPyConnection, decoded: pa.Table) -> pa.Table:
    """schema.SPANS: `decoded`, and what sql/ingest/spans.sql concludes of it, in its order.

    Only what the SQL reads and says goes through DuckDB, so long texts and token ids are copied once, in Arrow.
    """
    rows, wanted = decoded.num_rows, schema.arrow_schema(schema.DECODED)
    # Columns that no span has are one array a type.
    nothing = {kind: pa.nulls(rows, kind) for kind in set(wanted.types)}
    there = [
        nothing[kind] if pa.types.is_null(c.type) else c for c, kind in zip(decoded.columns, wanted.types, strict=True)
    ]
    decoded = pa.table(there, wanted.names).set_column(0, "row", pa.array(np.arange(rows, dtype=np.int32)))
    con.register("decoded_spans", decoded)
    try:
        concluded = con.sql(sql.text("ingest/spans")).to_arrow_table()
    finally:
        con.unregister("decoded_spans")
    sorted_spans = _sorted(decoded, concluded["row"].combine_chunks())
    columns = {name: concluded[name] for name in concluded.column_names}
    columns |= number_facts(sorted_spans)
    return pa.table(
        [columns[c.name] if c.name in columns else sorted_spans[c.name] for c in schema.SPANS],
        schema=schema.arrow_schema(schema.SPANS),
    )


def _sorted(decoded: pa.Table, row: pa.Int32Array) -> pa.Table:
    """These rows as schema.DECODED. Texts are sorted as the views they are and copied once, where `take` does it twice."""
    places = row.to_numpy()
    columns: list[Any] = []
    wanted = schema.arrow_schema(schema.DECODED)
    for column, kind in zip(decoded.columns, wanted.types, strict=True):
        if pa.types.is_string_view(column.type):
            columns.append(taken_views(column.combine_chunks(), places).cast(kind))
        elif column.null_count == len(column):
            columns.append(column)
        else:
            columns.append(column.cast(kind).combine_chunks().take(row))
    return pa.table(columns, schema=wanted)


def sweep_rejected(directory: Path, decoded_offset: int) -> None:
    """Remove what a decoding set aside that then did not come to its end: the next sets it aside again."""
    for path in directory.glob("*.jsonl"):
        if int(path.name[:20]) >= decoded_offset:
            path.unlink(missing_ok=True)


def write_rejected(directory: Path, name: str, rejected: list[dict[str, Any]]) -> None:
    """Keep rejected spans, one JSON line each, in a file named after the range of the spool they came from."""
    if not rejected:
        return
    path = directory / f"{name}.jsonl"
    # Durable before the spool is freed; ASCII, so that half of a surrogate pair in a reason is no obstacle.
    write_atomic(path, "".join(json.dumps(r) + "\n" for r in rejected).encode())
    count = sum(r["count"] for r in rejected)
    logger.warning("%d spans could not be decoded; kept with the reason in %s", count, path)
