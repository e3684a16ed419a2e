"""Spool → typed Parquet.

A request is decoded span by span; a span that cannot be decoded is kept in `spool/rejected/` with the reason, and the
rest of its request goes on. The output of a range of the spool depends on nothing but that range, so a replay after a
crash writes the same file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lightning_core.lake import schema, sql
from lightning_core.lake.spool import Record

logger = logging.getLogger(__name__)

_KINDS = {0: "unspecified", 1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
_STATUSES = {0: "unset", 1: "ok", 2: "error"}
_MAX_NS = 2**63 - 1


@dataclass(frozen=True)
class Alias:
    column: str
    rank: int
    type: str


@dataclass
class Decoded:
    """Columns of spans under construction, and what was rejected."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {c.name: [] for c in schema.DECODED})
    rejected: list[dict[str, Any]] = field(default_factory=list)
    spans: int = 0


@cache
def aliases() -> dict[str, Alias]:
    """Attribute key → column, as `sql/ingest/attribute_aliases.sql` says."""
    with duckdb.connect() as con:
        rows = con.execute(sql.text("ingest/attribute_aliases")).fetchall()
    return {key: Alias(column, rank, kind) for key, column, rank, kind in rows}


class Decoder:
    """Decodes records of the spool into one Arrow table of typed spans."""

    def __init__(self) -> None:
        self._aliases = aliases()

    def decode(self, records: Iterable[tuple[int, int, Record]]) -> tuple[pa.Table, list[dict[str, Any]]]:
        """Typed spans (schema.SPANS) and the spans that were rejected, each with its reason.

        records: (offset, next offset, record), as `spool.read` yields them.
        """
        out = Decoded()
        for offset, _, record in records:
            self._request(out, offset, record)
        decoded = pa.table(
            [pa.array(out.columns[c.name], type=c.arrow) for c in schema.DECODED],
            schema=schema.arrow_schema(schema.DECODED),
        )
        with duckdb.connect() as con:
            con.register("decoded_spans", decoded)
            table = con.sql(sql.text("ingest/spans")).to_arrow_table()
        return table.cast(schema.arrow_schema(schema.SPANS)), out.rejected

    def _request(self, out: Decoded, offset: int, record: Record) -> None:
        try:
            request = ExportTraceServiceRequest.FromString(record.body)
        except DecodeError as error:
            out.rejected.append({"offset": offset, "index": None, "reason": f"no OTLP request: {error}"})
            return
        index = -1
        for resource_spans in request.resource_spans:
            resource_bytes = resource_spans.resource.SerializeToString(deterministic=True)
            resource = list(_plain_map(resource_spans.resource.attributes).items())
            for scope_spans in resource_spans.scope_spans:
                scope = scope_spans.scope
                instrumentation = f"{scope.name}@{scope.version}" if scope.version else scope.name or None
                for span in scope_spans.spans:
                    index += 1
                    try:
                        row = self._span(span)
                    except Exception as error:  # noqa: BLE001 - one bad span must not lose its neighbours
                        out.rejected.append(
                            {
                                "offset": offset,
                                "index": index,
                                "reason": f"{type(error).__name__}: {error}",
                                "span": _hex(span),
                            }
                        )
                        continue
                    row["scoped_rollout_id"] = record.rollout_id
                    row["scoped_attempt_id"] = record.attempt_id
                    row["scope"] = record.scope
                    row["resource"] = resource
                    row["instrumentation"] = instrumentation
                    row["received_ns"] = record.received_ns
                    row["record_offset"] = offset
                    row["record_index"] = index
                    row["content_hash"] = _content_hash(resource_bytes, span)
                    for name, column in out.columns.items():
                        column.append(row.get(name))
                    out.spans += 1

    def _span(self, span: Any) -> dict[str, Any]:
        if not span.trace_id or not span.span_id:
            raise ValueError("a span without trace id or span id")
        row: dict[str, Any] = {
            "trace_id": span.trace_id.hex(),
            "span_id": span.span_id.hex(),
            "parent_span_id": span.parent_span_id.hex() or None,
            "name": span.name,
            "kind": _KINDS.get(span.kind, str(span.kind)),
            "start_ns": _time(span.start_time_unix_nano),
            "end_ns": _time(span.end_time_unix_nano),
            "status": _STATUSES.get(span.status.code, str(span.status.code)),
            "status_message": span.status.message or None,
            "events": _json(
                [
                    {"time_ns": e.time_unix_nano, "name": e.name, "attributes": _plain_map(e.attributes)}
                    for e in span.events
                ]
            ),
            "links": _json(
                [
                    {"trace_id": x.trace_id.hex(), "span_id": x.span_id.hex(), "attributes": _plain_map(x.attributes)}
                    for x in span.links
                ]
            ),
        }
        winners: dict[str, tuple[int, str, str | None]] = {}  # column → rank, key, text it would have as an attribute
        rest: dict[str, str] = {}
        for attribute in span.attributes:
            key = attribute.key
            alias = self._aliases.get(key)
            if alias is None:
                rest[key] = _text(attribute.value)
                continue
            value = _typed(attribute.value, alias.type)
            if value is None:
                rest[key] = _text(attribute.value)
                continue
            former = winners.get(alias.column)
            if former is not None and former[0] <= alias.rank:
                if _text(attribute.value) != former[2]:
                    rest[key] = _text(attribute.value)
                continue
            text = None if alias.type.endswith("32s") else _text(attribute.value)
            if former is not None and former[2] is not None and former[2] != text:
                rest[former[1]] = former[2]
            winners[alias.column] = (alias.rank, key, text)
            row[alias.column] = value
            if alias.column == "agent_name":
                row["agent_name_source"] = key
        row["attributes"] = list(rest.items())
        return row


def _content_hash(resource: bytes, span: Any) -> int:
    content = resource + span.SerializeToString(deterministic=True)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def _time(ns: int) -> int | None:
    """OTLP says 0 for `not sent`; times past the range of a signed 64-bit integer are none."""
    return ns if 0 < ns <= _MAX_NS else None


def _typed(value: Any, kind: str) -> Any:
    """The value as the column's type, or None where it is of another kind (it then stays an attribute)."""
    which = value.WhichOneof("value")
    if kind == "text":
        return None if which is None else _text(value)
    if kind == "int":
        plain = _scalar(value, which)
        try:
            number = int(plain)
        except (TypeError, ValueError, OverflowError):
            return None
        return number if -(2**63) <= number <= _MAX_NS else None
    if kind == "float":
        try:
            return float(_scalar(value, which))
        except (TypeError, ValueError):
            return None
    return _array(value, which, "i" if kind == "int32s" else "f")


def _scalar(value: Any, which: str | None) -> Any:
    return getattr(value, which) if which in ("string_value", "int_value", "double_value", "bool_value") else None


def _array(value: Any, which: str | None, code: str) -> Any:
    """Numbers of a token array: little-endian bytes, an OTLP array, or JSON text."""
    try:
        if which == "bytes_value":
            return array(code, value.bytes_value).tolist()
        if which == "array_value":
            return array(code, [_scalar(v, v.WhichOneof("value")) for v in value.array_value.values]).tolist()
        if which == "string_value":
            return array(code, orjson.loads(value.string_value)).tolist()
    except (TypeError, ValueError, OverflowError):
        return None
    return None


def _plain(value: Any) -> Any:
    which = value.WhichOneof("value")
    if which == "array_value":
        return [_plain(v) for v in value.array_value.values]
    if which == "kvlist_value":
        return _plain_map_of(value.kvlist_value.values)
    if which == "bytes_value":
        return value.bytes_value.hex()
    if which == "double_value" and not math.isfinite(value.double_value):
        return str(value.double_value)
    return getattr(value, which) if which else None


def _plain_map_of(attributes: Any) -> dict[str, Any]:
    return {a.key: _plain(a.value) for a in attributes}


def _plain_map(attributes: Any) -> dict[str, str]:
    return {a.key: _text(a.value) for a in attributes}


def _text(value: Any) -> str:
    """An attribute as text: strings as they are, everything else as JSON."""
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, default=str)


def _json(items: list[dict[str, Any]]) -> str | None:
    return json.dumps(items, ensure_ascii=False) if items else None


def _hex(span: Any) -> str:
    return span.SerializeToString().hex()


def write_rejected(directory: Path, name: str, rejected: list[dict[str, Any]]) -> None:
    """Keep rejected spans, one JSON line each, in a file named after the range of the spool they came from."""
    if not rejected:
        return
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rejected))
    logger.warning("%d spans could not be decoded; kept with the reason in %s", len(rejected), path)
