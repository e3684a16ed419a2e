"""Traces that other systems exported, as rollouts: a trace is one, under the id that it has.

What a convention's attributes mean is SQL's to say (sql/ingest, sql/triplets/foreign_calls.sql); here files become OTLP. Read as a
whole, since the spans of a trace may lie anywhere in it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from lightning_core import names
from lightning_core.epoch.imported import BadPart, Group, Imported, group_of
from lightning_core.otlp.from_json import trace_envelope
from lightning_core.otlp.messages import OtlpError, Span, parse, parse_envelope, why_unconverted
from lightning_core.otlp.spans import SpanData
from lightning_core.otlp.wire import WireError

_KEPT = {names.REWARD.encode(), names.REWARD_NAME.encode()}  # of our own attributes: the others say what no file may
_ASKED, _ANSWERED = (b"input.value", b"mlflow.spanInputs"), (b"output.value", b"mlflow.spanOutputs")
_STATUS = {"OK": "ok", "ERROR": "error"}
_SHAPES = {
    "otlp": '{"resourceSpans": […]}, whole or one a line',
    "openinference": 'what Phoenix answers under /v1/projects/…/spans: {"data": […]}',
    "mlflow": "what MLflow's `trace.to_json()` returns, one a line or a list",
}


class _Trace:
    """The spans of a trace as they come together."""

    def __init__(self) -> None:
        self.groups: dict[tuple[bytes, bytes], list[bytes]] = {}
        self.spans: list[Any] = []  # parsed
        self.rewards: dict[str, float] = {}


def read_traces(file: Path, source: str) -> Iterator[Imported | BadPart]:
    """Yield the traces of a file (`otlp`, `openinference`, `mlflow`), and before them the parts that are none."""
    traces: dict[bytes, _Trace] = {}
    for where, document in _documents(file):
        try:
            if isinstance(document, ValueError):
                raise document
            for group in _groups(document, source):
                yield from _take(traces, group, where)
            if source == "mlflow":
                _take_feedback(traces, document)
        except (ValueError, KeyError, TypeError, AttributeError, OtlpError) as error:
            why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
            yield BadPart(where, f"no traces of {source} ({why:.200}); it reads {_SHAPES[source]}")
    for trace_id, trace in traces.items():
        yield _rollout(trace_id.hex(), trace)


def _documents(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, JSON or bytes of protobuf): lines where the first is JSON by itself, else the whole file."""
    if file.suffix in (".pb", ".binpb"):
        yield str(file), file.read_bytes()
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield f"{file}:{number}", orjson.loads(line)
            except orjson.JSONDecodeError as error:
                if number > 1:
                    yield f"{file}:{number}", ValueError(f"no JSON: {error}")
                    continue
                try:
                    yield str(file), orjson.loads(file.read_bytes())
                except orjson.JSONDecodeError as whole:
                    yield str(file), ValueError(f"no JSON: {whole}")
                return


def _groups(document: Any, source: str) -> Iterator[Group]:
    if source == "mlflow":
        for trace in _mlflow_traces(document):
            yield group_of([_mlflow_span(span) for span in trace["data"]["spans"]], {"service.name": "mlflow"})
        return
    if isinstance(document, bytes):
        envelope = parse_envelope(document)
    else:
        if source == "openinference" and all("context" in span for span in document["data"]):
            yield group_of([_phoenix_span(span) for span in document["data"]], {"service.name": "phoenix"})
            return
        if "data" in document:  # Phoenix's spans in OTLP
            document = {"resourceSpans": [{"scopeSpans": [{"spans": document["data"]}]}]}
        envelope, _ = trace_envelope(_without_nulls(document))
    for above in envelope.resource_spans:
        for group in above.scope_spans:
            yield Group(above.resource, group.scope, list(group.spans))


def _take(traces: dict[bytes, _Trace], group: Group, where: str) -> Iterator[BadPart]:
    for raw in group.spans:
        try:
            if (reason := why_unconverted(raw)) is not None:
                raise WireError(reason[0])
            span = parse(Span, raw)
            if len(span.trace_id) != 16 or len(span.span_id) != 8:
                raise WireError("it has no trace id of 16 bytes and span id of 8")
        except WireError as error:
            yield BadPart(where, f"a span that cannot be read: {error}")
            continue
        kept = [a for a in span.attributes if not a.key.startswith(b"lightning.") or a.key in _KEPT]
        if len(kept) < len(span.attributes):
            del span.attributes[:]
            span.attributes.extend(kept)
        trace = traces.setdefault(span.trace_id, _Trace())
        trace.groups.setdefault((group.resource, group.scope), []).append(span.SerializeToString())
        trace.spans.append(span)


def _rollout(trace_id: str, trace: _Trace) -> Imported:
    ids = {span.span_id for span in trace.spans}
    root = min(trace.spans, key=lambda s: (s.parent_span_id in ids, s.start_time_unix_nano))
    failed = root.status.code == 2
    keys = {a.key for span in trace.spans for a in span.attributes}
    return Imported(
        rollout_id=f"trace-{trace_id}",
        trace_id=trace_id,
        start_ns=min(span.start_time_unix_nano for span in trace.spans),
        end_ns=max(span.end_time_unix_nano for span in trace.spans),
        groups=[Group(*key, spans) for key, spans in trace.groups.items()],
        task=_json_of(root, _ASKED),
        output=_json_of(root, _ANSWERED),
        outcome="error" if failed else "ok",
        error=root.status.message.decode("utf-8", "replace") or "the trace failed" if failed else None,
        rewards=trace.rewards or ({} if names.REWARD.encode() in keys else {"reward": 1.0}),
    )


def _json_of(span: Any, keys: Iterable[bytes]) -> str | None:
    """Return the first of these attributes that the span has, as JSON."""
    for key in keys:
        for attribute in span.attributes:
            if attribute.key == key and attribute.value.string_value:
                text: str = attribute.value.string_value.decode("utf-8", "replace")
                try:
                    orjson.loads(text)
                    return text
                except orjson.JSONDecodeError:
                    return json.dumps(text)
    return None


def _phoenix_span(span: dict[str, Any]) -> SpanData:
    attributes = span["attributes"] | {"openinference.span.kind": span["span_kind"]}
    return SpanData(
        name=span["name"],
        start_ns=_ns(span["start_time"]),
        end_ns=_ns(span["end_time"]),
        trace_id=span["context"]["trace_id"],
        span_id=span["context"]["span_id"],
        parent_id=span.get("parent_id") or "",
        attributes=attributes,
        status=_STATUS.get(span.get("status_code", ""), "unset"),
        status_message=span.get("status_message") or "",
        events=[(_ns(e["timestamp"]), e["name"], e.get("attributes") or {}) for e in span.get("events") or []],
    )


def _ns(moment: str) -> int:
    found = datetime.fromisoformat(moment)
    return int(found.timestamp()) * 1_000_000_000 + found.microsecond * 1000


def _mlflow_traces(document: Any) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = document if isinstance(document, list) else document.get("traces") or [document]
    return traces


def _mlflow_span(span: dict[str, Any]) -> SpanData:
    status = span.get("status") or {}
    return SpanData(
        name=span["name"],
        start_ns=span["start_time_unix_nano"],
        end_ns=span["end_time_unix_nano"] or span["start_time_unix_nano"],
        trace_id=_hex(span["trace_id"]),
        span_id=_hex(span["span_id"]),
        parent_id=_hex(span["parent_span_id"]) if span.get("parent_span_id") else "",
        attributes=span["attributes"],
        status=_STATUS.get(str(status.get("code", "")).removeprefix("STATUS_CODE_"), "unset"),
        status_message=status.get("message") or "",
        events=[(e["time_unix_nano"], e["name"], e.get("attributes") or {}) for e in span.get("events") or []],
    )


def _take_feedback(traces: dict[bytes, _Trace], document: Any) -> None:
    """Take MLflow's feedback on a trace that is a number, or true or false, as a reward of that name."""
    for trace in _mlflow_traces(document):
        spans = trace["data"]["spans"]
        found = traces.get(base64.b64decode(spans[0]["trace_id"])) if spans else None
        if found is None:  # it has no span, or none that could be read
            continue
        for given in trace["info"].get("assessments") or []:
            value = (given.get("feedback") or {}).get("value")
            if isinstance(value, int | float) and given.get("valid", True):
                found.rewards[given["assessment_name"]] = float(value)


def _hex(text: str) -> str:
    return base64.b64decode(text).hex()


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
