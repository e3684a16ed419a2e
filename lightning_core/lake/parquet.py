"""How rows lie on disk: Parquet files that are there whole or not at all.

Row groups are cut by rows and by the size of what they hold, never by how the rows arrived, so that the same rows in the
same order are the same bytes. Sorted by rollout, a row group is what a reader of one rollout has to touch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_core.errors import LightningError
from lightning_core.files import make_folder, put_in_place
from lightning_core.lake import schema

ROWS_A_GROUP = 32_768
BYTES_A_GROUP = 64 << 20  # before compression: what a writer holds in memory
_COMPRESSION = {"compression": "zstd", "compression_level": 1}
# Values that hardly ever repeat: a dictionary of them is built for nothing.
_UNIQUE = {"trace_id", "span_id", "parent_span_id", "response_id", "input_messages", "output_messages", "content_hash"}


class NotWritten(LightningError, OSError):
    """A file could not be written (disk full, I/O error); nothing of it is there. The message names it."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; at the end make it durable and rename it to `path`.

    Where that or the block fails, remove it.
    """
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        yield beside
        put_in_place(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise NotWritten(f"{path}: not written, the lake is as it was before: {error}") from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_table(path: Path, table: pa.Table) -> int:
    """Write a table; returns the file's bytes. Raises NotWritten."""
    table = table.combine_chunks()
    rows = max(min(ROWS_A_GROUP, BYTES_A_GROUP * table.num_rows // max(table.nbytes, 1)), 1)
    with replacing(path) as beside:
        pq.write_table(table, beside, row_group_size=rows, **_encoding(table.schema))
    return path.stat().st_size


def write_stream(path: Path, columns: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write batches as they come, for tables larger than memory; returns the number of rows. Raises NotWritten."""
    count = 0
    with replacing(path) as beside, pq.ParquetWriter(beside, columns, **_encoding(columns)) as writer:
        for group in row_groups(batches):
            writer.write_table(group, row_group_size=group.num_rows)
            count += group.num_rows
    return count


def row_groups(batches: Iterable[pa.RecordBatch], weight: str | None = None) -> Iterator[pa.Table]:
    """Yield rows in groups cut by number, and by the bytes in a column `weight` if given, however the batches fell."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        running = np.cumsum(batch.column(weight).to_numpy() if weight else np.zeros(batch.num_rows, np.int64))
        start = 0
        while start < batch.num_rows:
            before = int(running[start - 1]) if start else 0
            heavy = int(np.searchsorted(running, before + BYTES_A_GROUP - size)) + 1
            stop = min(batch.num_rows, start + ROWS_A_GROUP - rows, heavy)
            held.append(batch.slice(start, stop - start))
            rows, size, start = rows + stop - start, size + int(running[stop - 1]) - before, stop
            if rows == ROWS_A_GROUP or size >= BYTES_A_GROUP:
                yield pa.Table.from_batches(held).combine_chunks()
                held, rows, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held).combine_chunks()


def span_writer(path: Path) -> pq.ParquetWriter:
    """Return a writer of rows of schema.SPANS; every `write_table` of it is one row group."""
    spans = schema.arrow_schema(schema.SPANS)
    return pq.ParquetWriter(path, spans, **_encoding(spans))


def weight() -> str:
    """Return SQL that computes the bytes of a row of `spans` before compression, a function of its content alone."""
    parts = ["256"]
    for column in schema.SPANS:
        if column.type == "VARCHAR":
            parts.append(f"coalesce(strlen({column.name}), 0)")
        elif column.type.endswith("[]"):
            parts.append(f"4 * coalesce(len({column.name}), 0)")
        elif column.type.startswith("MAP"):
            texts = f"list_concat(map_keys({column.name}), map_values({column.name}))"
            parts.append(f"coalesce(list_sum(list_transform({texts}, lambda text: strlen(text))), 0)")
    return f"({' + '.join(parts)})::BIGINT"


def _encoding(columns: pa.Schema) -> dict[str, Any]:
    """Return the options by which the writer stores these columns.

    Dictionaries for what repeats. Token ids and logprobs byte by byte, the high bytes of all numbers one after another:
    half as long to compress as with a dictionary, and no larger.
    """
    dictionaries, numbers = [], {}
    for field in columns:
        if pa.types.is_list(field.type) and field.type.value_type in (pa.int32(), pa.float32()):
            numbers[f"{field.name}.list.element"] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_list(field.type):
            dictionaries.append(f"{field.name}.list.element")
        elif pa.types.is_map(field.type):
            dictionaries += [f"{field.name}.key_value.key", f"{field.name}.key_value.value"]
        elif field.name not in _UNIQUE:
            dictionaries.append(field.name)
    return {"use_dictionary": dictionaries, "column_encoding": numbers} | _COMPRESSION
