"""What both OTLP receivers do with a request, whichever way it came: traces to the spool, other signals refused.

Metrics and logs are not kept. They are answered with success and a `partial_success` that rejects every item: by the
specification an exporter must not retry that, whereas 404 or UNIMPLEMENTED makes SDKs log an error at each interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from lightning_core.gateway.access import Caller
from lightning_core.gateway.http import HttpError, Take
from lightning_core.gateway.room import Room
from lightning_core.gateway.stats import Stats
from lightning_core.otlp.from_json import objects, read_json
from lightning_core.otlp.messages import OtlpError
from lightning_core.otlp.receive import media_type, parse_request, plain_body
from lightning_core.otlp.spans import PROTOBUF
from lightning_core.spool.spool import Record, SpoolError, SpoolWriter

RETRY_AFTER_S = 2
GRPC_CODES = {400: 3, 401: 16, 408: 4, 413: 3, 415: 3, 503: 14}  # HTTP status → google.rpc.Code; 2 (unknown) for others

Signal = Literal["traces", "metrics", "logs"]

_REFUSED_BYTES = 4 << 20  # of a request that is thrown away, inflated
_JSON_AT_ONCE = 4 * 1024  # bytes; they take up to 10 µs each
_PROTOBUF_AT_ONCE = 512 * 1024
_METRIC_KINDS = ("gauge", "sum", "histogram", "exponentialHistogram", "summary")


@dataclass(frozen=True, slots=True)
class Intake:
    spool: SpoolWriter
    stats: Stats
    max_body: int  # bytes, uncompressed
    room: Room

    @contextlib.contextmanager
    def admitted(self, caller: Caller) -> Iterator[Take]:
        """Yield what takes room for a request while the block runs; count the request where it is put off with 503."""
        with self.room.holding(caller) as take:
            try:
                yield take
            except HttpError as error:
                if error.status == 503:
                    self.stats.refused.inc()
                    attempt = self.stats.attempt(caller.rollout_id, caller.attempt_id)
                    attempt.refused_otlp += 1
                    self.stats.all.refused_otlp += 1
                    attempt.last_error = error.message
                raise

    async def answer(
        self, signal: Signal, caller: Caller, body: bytes, content_type: str, encoding: str | None, take: Take
    ) -> Any:
        """Return the response to a request, once its spans are on disk.

        Of metrics and logs it rejects every item, and they are counted. Raises OtlpError for what is no request of this
        signal, HttpError 503 where spans cannot be taken now.
        """
        if signal == "traces":
            return await self._traces(caller, body, content_type, encoding, take)
        if len(body) < _JSON_AT_ONCE and not encoding:  # all of it is read, of protobuf, too
            response, rejected = _refused(signal, body, content_type, encoding)
        else:
            response, rejected = await asyncio.to_thread(_refused, signal, body, content_type, encoding)
        self.stats.dropped.labels(signal).inc(rejected)
        return response

    async def _traces(self, caller: Caller, body: bytes, content_type: str, encoding: str | None, take: Take) -> Any:
        arguments = (body, content_type, encoding, self.max_body)
        if _at_once(body, content_type, encoding):
            request = parse_request(*arguments)
        else:
            request = await asyncio.to_thread(parse_request, *arguments)
        if request.body:  # an empty request is valid, and nothing to keep
            if request.body is not body:
                take(len(request.body))
            now = time.time_ns()
            await self.store(
                Record(caller.rollout_id, caller.attempt_id, caller.scope, now, caller.sender, request.body)
            )
            self.stats.received.inc(request.spans)
        response = ExportTraceServiceResponse()
        if request.rejected:
            self.stats.rejected.inc(request.rejected)
            self.stats.attempt(caller.rollout_id, caller.attempt_id).rejected_spans += request.rejected
            self.stats.all.rejected_spans += request.rejected
            response.partial_success.rejected_spans = request.rejected
            response.partial_success.error_message = request.reason
        return response

    async def store(self, record: Record) -> None:
        """Return once the record is on disk. Raises HttpError 503 where it cannot be taken now."""
        try:
            await self.spool.append(record)
        except SpoolError as error:
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            raise HttpError(503, str(error), "server_error", headers=headers) from None
        own = record.source == "gateway"
        (self.stats.spooled_calls if own else self.stats.spooled_otlp).inc(len(record.body))


def _at_once(body: bytes, content_type: str, encoding: str | None) -> bool:
    """Return whether a trace request takes well under a millisecond.

    The rest would hold up every other request: a small compressed body can be a large one.
    """
    most = _PROTOBUF_AT_ONCE if media_type(content_type) == PROTOBUF else _JSON_AT_ONCE
    return not encoding and len(body) < most


def _refused(signal: Signal, body: bytes, content_type: str, encoding: str | None) -> tuple[Any, int]:
    media, plain = plain_body(body, content_type, encoding, _REFUSED_BYTES, "send smaller batches")
    response: Any
    if signal == "metrics":
        rejected = _points(plain) if media == PROTOBUF else _json_points(read_json(plain))
        response = ExportMetricsServiceResponse()
        response.partial_success.rejected_data_points = rejected
    else:
        rejected = _logs(plain) if media == PROTOBUF else _json_logs(read_json(plain))
        response = ExportLogsServiceResponse()
        response.partial_success.rejected_log_records = rejected
    response.partial_success.error_message = f"this gateway keeps traces only; {signal} are not stored"
    return response, rejected


def _parse(kind: type[Any], plain: bytes) -> Any:
    try:
        return kind.FromString(plain)
    except DecodeError:
        raise OtlpError(400, f"the body is no {kind.DESCRIPTOR.name} in protobuf") from None


def _points(plain: bytes) -> int:
    points = 0
    for resource in _parse(ExportMetricsServiceRequest, plain).resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                points += len(getattr(metric, kind).data_points) if kind else 0
    return points


def _logs(plain: bytes) -> int:
    request = _parse(ExportLogsServiceRequest, plain)
    return sum(len(scope.log_records) for resource in request.resource_logs for scope in resource.scope_logs)


def _json_points(raw: dict[str, Any]) -> int:
    points = 0
    for resource in objects(raw, "resourceMetrics", "resource_metrics"):
        for scope in objects(resource, "scopeMetrics", "scope_metrics"):
            for metric in objects(scope, "metrics"):
                kinds = [metric[kind] for kind in _METRIC_KINDS if isinstance(metric.get(kind), dict)]
                points += sum(len(objects(kind, "dataPoints", "data_points")) for kind in kinds)
    return points


def _json_logs(raw: dict[str, Any]) -> int:
    scopes = [s for r in objects(raw, "resourceLogs", "resource_logs") for s in objects(r, "scopeLogs", "scope_logs")]
    return sum(len(objects(scope, "logRecords", "log_records")) for scope in scopes)
