"""The OTLP/HTTP receiver: traces go to the spool, and 200 means that they are on disk.

Metrics and logs are not kept. They are answered 200 with a `partial_success` that rejects every item: by the
specification an exporter must not retry that, whereas a 404 makes the Python SDK log an error at each interval.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lightning_core.lake.otlp import JSON, PROTOBUF, OtlpError, decode_message, media_type, parse_request
from lightning_core.lake.spool import Record, SpoolError, SpoolWriter
from lightning_core.server.access import Caller, identify
from lightning_core.server.http import HttpError, read_body
from lightning_core.server.stats import Stats

log = logging.getLogger(__name__)

_IN_THREAD_FROM = 256 * 1024  # bytes; smaller bodies are parsed faster than handed over
_GRPC_CODES = {400: 3, 401: 16, 413: 3, 415: 3, 503: 14}


@dataclass(frozen=True, slots=True)
class Receiver:
    secret: str
    spool: SpoolWriter
    stats: Stats
    max_body: int

    async def traces(self, scope: Scope, receive: Receive, send: Send) -> int:
        headers = Headers(scope=scope)
        try:
            caller = identify(scope, self.secret, anonymous=True)
            body = await read_body(scope, receive, self.max_body)
            content_type, encoding = headers.get("content-type", ""), headers.get("content-encoding")
            arguments = (body, content_type, encoding, self.max_body)
            if len(body) < _IN_THREAD_FROM:
                request = parse_request(*arguments)
            else:
                request = await asyncio.to_thread(parse_request, *arguments)
            if request:  # an empty request is valid, and nothing to keep
                await self._store(caller, request)
            response = _message(ExportTraceServiceResponse(), headers)
        except (HttpError, OtlpError) as error:
            response = _error(error, headers)
        await response(scope, receive, send)
        return response.status_code

    async def _store(self, caller: Caller, request: bytes) -> None:
        record = Record(caller.rollout_id, caller.attempt_id, caller.scope, time.time_ns(), "otlp", request)
        try:
            await self.spool.append(record)
        except SpoolError as error:
            self.stats.refused.inc()
            attempt = self.stats.attempt(caller.rollout_id, caller.attempt_id)
            attempt.refused_otlp += 1
            attempt.last_error = str(error)
            raise HttpError(503, str(error), "server_error", headers={"Retry-After": "2"}) from None
        self.stats.spooled.labels("otlp").inc(len(request))

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> int:
        return await self._reject("metrics", scope, receive, send)

    async def logs(self, scope: Scope, receive: Receive, send: Send) -> int:
        return await self._reject("logs", scope, receive, send)

    async def _reject(self, signal: str, scope: Scope, receive: Receive, send: Send) -> int:
        headers = Headers(scope=scope)
        try:
            identify(scope, self.secret, anonymous=True)
            body = await read_body(scope, receive, self.max_body)
            kind = ExportMetricsServiceRequest if signal == "metrics" else ExportLogsServiceRequest
            _, request = decode_message(
                kind, body, headers.get("content-type", ""), headers.get("content-encoding"), self.max_body
            )
            answer: Any
            why = f"this server keeps traces only; {signal} are not stored"
            if signal == "metrics":
                rejected = _count_points(request)
                answer = ExportMetricsServiceResponse()
                answer.partial_success.rejected_data_points = rejected
            else:
                rejected = sum(len(s.log_records) for r in request.resource_logs for s in r.scope_logs)
                answer = ExportLogsServiceResponse()
                answer.partial_success.rejected_log_records = rejected
            answer.partial_success.error_message = why
            self.stats.dropped.labels(signal).inc(rejected)
            response = _message(answer, headers)
        except (HttpError, OtlpError) as error:
            response = _error(error, headers)
        await response(scope, receive, send)
        return response.status_code


def _count_points(request: Any) -> int:
    points = 0
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                points += len(getattr(metric, kind).data_points) if kind else 0
    return points


def _message(message: Any, headers: Headers, status: int = 200, extra: dict[str, str] | None = None) -> Response:
    """A reply in the request's encoding, as OTLP/HTTP wants it."""
    if media_type(headers.get("content-type", "")) == JSON:
        return Response(json_format.MessageToJson(message, indent=None), status, extra, media_type=JSON)
    return Response(message.SerializeToString(), status, extra, media_type=PROTOBUF)


def _error(error: HttpError | OtlpError, headers: Headers) -> Response:
    if isinstance(error, HttpError) and error.status == 401:
        return error.response()  # one shape for a missing key, whatever was asked for
    log.warning("OTLP request refused with %d: %s", error.status, error.message)
    extra = error.headers if isinstance(error, HttpError) else None
    return _message(Status(code=_GRPC_CODES.get(error.status, 2), message=error.message), headers, error.status, extra)
