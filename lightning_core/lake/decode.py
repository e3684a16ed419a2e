"""Spool → typed Arrow rows.

A request is decoded span by span, thousands of spans at a time; a span that cannot be decoded is rejected alone, with
the reason, and the rest of its request goes on. The output for a range of the spool depends on nothing but that range,
so a replay after a crash writes the same file. `docs/ingest.md` lists what becomes of every kind of bad input.
"""

from __future__ import annotations

import gc
import json
import logging
import weakref
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from lightning_core.files import write_atomic
from lightning_core.lake import schema, sql
from lightning_core.lake.manifest import LakeError
from lightning_core.lake.number_facts import number_facts
from lightning_core.otlp.columns import Alias, span_columns
from lightning_core.otlp.locate import Sent, locate, rejection
from lightning_core.otlp.messages import OtlpError, count_spans, parse_envelope
from lightning_core.spool.spool import Record

logger = logging.getLogger(__name__)

_AT_ONCE = 32 << 20  # bytes of requests decoded together,
_SPANS_AT_ONCE = 1 << 17  # and spans,
_SPAN_BYTES_AT_ONCE = 8 << 20  # and what these hold: empty events or maps take 200 times their bytes
_CONCLUDED_AT_ONCE = 1 << 18  # spans of which SQL concludes together; a file with more is sorted in as many parts

_PASSING = (duckdb.OutOfMemoryException, duckdb.IOException, duckdb.InterruptException)  # not the spans' doing
Placed = tuple[int, int, Record]  # offset, next offset, record: as `spool.read` yields them


@cache
def aliases() -> dict[str, Alias]:
    """Return attribute key → column, as `sql/ingest/attribute_aliases.sql` defines it."""
    with duckdb.connect() as con:
        rows = con.execute(sql.text("ingest/attribute_aliases")).fetchall()
    return {key: Alias(*alias) for key, *alias in rows}


class Decoder:
    """Decodes records of the spool into one Arrow table of typed spans. Not to be shared between threads.

    secret: the gateway's, to check proofs by (lightning_core/otlp/proof.py); without it none holds.
    """

    def __init__(self, secret: str | None = None) -> None:
        self._secret = secret
        con = duckdb.connect(config={"threads": 1})
        con.execute(f"CREATE TABLE agent_rules AS {sql.text('hierarchy/agent_rules')}")
        self._engine = [con]
        # Its binding complains, on stderr, of connections that are still there when the interpreter has ended.
        weakref.finalize(self, self._engine.clear)

    def decode(self, records: Iterable[Placed]) -> tuple[pa.Table, list[dict[str, Any]]]:
        """Return typed spans (schema.SPANS), and what was rejected.

        Each rejected: `offset` and `index` (place in the request; None for the whole of it), `count` (1, or more where
        one entry stands for several), `reason`, `received_ns`, `rollout_id`, `attempt_id`, `span` (its bytes in hex).
        A record on which the decoder itself fails is rejected whole: it must not come back for ever and hold up the
        rest. What may pass is no reason to: where memory is short, fewer records are decoded at once; LakeError where
        that does not help.
        """
        placed = list(records)
        try:
            return self._decode(placed)
        except (OSError, MemoryError):
            raise
        except _PASSING as error:
            if len(placed) <= 1 or not isinstance(error, duckdb.OutOfMemoryException):
                raise LakeError(
                    f"spans cannot be decoded for now; the spool keeps them, and the next decoding goes on there: {error}"
                ) from error
            logger.warning("not enough memory for %d records at once, trying with half of them: %s", len(placed), error)
        except Exception as error:
            if len(placed) <= 1:
                return schema.arrow_schema(schema.SPANS).empty_table(), [_failed(*placed[0], error)]
            logger.debug("a record of %d cannot be decoded", len(placed), exc_info=True)
        middle = len(placed) // 2
        (first, bad), (second, worse) = self.decode(placed[:middle]), self.decode(placed[middle:])
        return pa.concat_tables([first, second]), bad + worse

    def _decode(self, records: list[Placed]) -> tuple[pa.Table, list[dict[str, Any]]]:
        had_gc = gc.isenabled()
        gc.disable()  # among millions of new texts it finds no cycle, and takes a tenth of the time
        try:
            parts = [_decode(part, self._secret) for part in _parts(records)]
        finally:
            if had_gc:
                gc.enable()
        decoded = _concatenated([_table({"row": pa.nulls(0)}), *(table for table, _ in parts)])
        firsts = range(0, max(decoded.num_rows, 1), _CONCLUDED_AT_ONCE)
        concluded = [_conclude(self._engine[0], decoded.slice(first, _CONCLUDED_AT_ONCE)) for first in firsts]
        return pa.concat_tables(concluded), [one for _, rejected in parts for one in rejected]


def _failed(offset: int, _: int, record: Record, error: Exception) -> dict[str, Any]:
    """Return the entry of a record that the decoder failed on, and log the error."""
    logger.error("the decoder failed on the record at offset %d; it is set aside", offset, exc_info=error)
    try:
        count = max(count_spans(parse_envelope(record.body)), 1)
    except OtlpError:
        count = 1
    reason = f"the decoder failed on the whole request: {type(error).__name__}: {error!s:.300}"
    return rejection(offset, None, count, reason, record, record.body.hex())


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


def _decode(records: list[tuple[int, Record]], secret: str | None = None) -> tuple[pa.Table, list[dict[str, Any]]]:
    found = locate(records, secret)
    tables = [_table(span_columns(found, block, aliases())) for block in _blocks(found.spans)]
    return _concatenated([_table({"row": pa.nulls(0)}), *tables]), found.all_rejected()


def _table(columns: dict[str, pa.Array]) -> pa.Table:
    """Return the columns of schema.DECODED as a table; a column that no span has is of Arrow's type null."""
    nothing = pa.nulls(len(next(iter(columns.values()))))
    return pa.table({c.name: columns.get(c.name, nothing) for c in schema.DECODED})


def _concatenated(tables: list[pa.Table]) -> pa.Table:
    """Join tables into one; a column that none of them has stays of type null, which takes no memory."""
    return pa.concat_tables(tables, promote_options="permissive")


def _blocks(spans: list[Sent]) -> Iterator[list[Sent]]:
    """Yield all spans in blocks, cut by their number and their bytes."""
    first = size = 0
    for i, (raw, *_) in enumerate(spans):
        size += len(raw)
        if i > first and (size > _SPAN_BYTES_AT_ONCE or i - first >= _SPANS_AT_ONCE):
            yield spans[first:i]
            first, size = i, len(raw)
    if spans:
        yield spans[first:]


def _conclude(con: duckdb.DuckDBPyConnection, decoded: pa.Table) -> pa.Table:
    """Return rows of schema.SPANS: `decoded`, and what sql/ingest/spans.sql concludes from it, in the SQL's order.

    Only what the SQL reads and says goes through DuckDB, so long texts and token ids are copied once, in Arrow.
    """
    spans = whole(decoded).set_column(0, "row", pa.array(np.arange(decoded.num_rows, dtype=np.int32)))
    con.register(
        "decoded_spans", spans.set_column(spans.schema.get_field_index("resource"), "resource", decoded["resource"])
    )
    try:
        concluded = con.sql(sql.text("ingest/spans")).to_arrow_table()
    finally:
        con.unregister("decoded_spans")
    sorted_spans = spans.combine_chunks().take(concluded["row"].combine_chunks())
    columns = {name: concluded[name] for name in concluded.column_names}
    columns |= number_facts(sorted_spans)
    return pa.table(
        [columns[c.name] if c.name in columns else sorted_spans[c.name] for c in schema.SPANS],
        schema=schema.arrow_schema(schema.SPANS),
    )


def whole(decoded: pa.Table) -> pa.Table:
    """Return the same as schema.DECODED: typed where no span has a value, and with its own resource for each span."""
    wanted = schema.arrow_schema(schema.DECODED)
    nothing = {kind: pa.nulls(decoded.num_rows, kind) for kind in set(wanted.types)}  # one array a type
    columns = []
    for column, kind in zip(decoded.columns, wanted.types, strict=True):
        if pa.types.is_null(column.type):
            columns.append(nothing[kind])
        elif pa.types.is_dictionary(column.type):
            columns.append(pa.chunked_array([part.dictionary.take(part.indices) for part in column.chunks], kind))
        else:
            columns.append(column)
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
