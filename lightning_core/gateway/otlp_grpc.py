"""The OTLP/gRPC receiver: the same intake as OTLP/HTTP, on a port of its own.

Requests reach the handlers as the bytes that were sent, also compressed ones (`grpc.per_message_decompression` is off):
gRPC itself would inflate a bomb without a limit, and nothing is encoded again on the way to the spool.

There is no URL path in gRPC, so an attempt is known by its token alone, in the metadata `authorization: Bearer …`.
"""

from __future__ import annotations

import logging
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from lightning_core.gateway.access import Access, token_of
from lightning_core.gateway.http import HttpError
from lightning_core.gateway.intake import GRPC_CODES, RETRY_AFTER_S, Intake, Signal
from lightning_core.otlp.messages import OtlpError
from lightning_core.otlp.receive import sniff_encoding
from lightning_core.otlp.spans import PROTOBUF

log = logging.getLogger(__name__)

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_SERVICES = {
    "traces": "opentelemetry.proto.collector.trace.v1.TraceService",
    "metrics": "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "logs": "opentelemetry.proto.collector.logs.v1.LogsService",
}


class GrpcReceiver:
    """A gRPC server on the running event loop; `start` binds, `stop` drains."""

    def __init__(self, access: Access, intake: Intake) -> None:
        self._access = access
        self._intake = intake
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", intake.max_body),
                ("grpc.per_message_decompression", 0),
                ("grpc.so_reuseport", 0),  # else two servers share a port and each gets a part of the spans
            ]
        )
        for signal, service in _SERVICES.items():
            handler = grpc.unary_unary_rpc_method_handler(self._handler(signal))
            generic = grpc.method_handlers_generic_handler(service, {"Export": handler})
            self._server.add_generic_rpc_handlers([generic])

    async def start(self, host: str, port: int) -> int:
        """Listen; the port that it is. Raises OSError where the address cannot be had."""
        address = f"[{host}]" if ":" in host else host or "[::]"
        try:
            bound: int = self._server.add_insecure_port(f"{address}:{port}")
        except RuntimeError as error:
            raise OSError(str(error)) from None
        await self._server.start()
        return bound

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, and finish those under way within `grace_s` seconds."""
        await self._server.stop(grace_s)

    def _handler(self, signal: str) -> Any:
        async def export(request: bytes, context: Any) -> bytes:
            try:
                metadata = dict(context.invocation_metadata() or ())
                token = token_of(metadata.get("authorization"))
                caller = self._access.identify_sender(token, _host(context.peer()))
                how = (request, PROTOBUF, sniff_encoding(request))
                with self._intake.admitted(caller) as take:
                    take(len(request))
                    if signal == "traces":
                        answer = await self._intake.traces(caller, *how, take)
                    else:
                        answer = await self._intake.refuse(_signal(signal), *how)
            except (HttpError, OtlpError) as error:
                await self._abort(signal, context, error)
            self._count(signal, grpc.StatusCode.OK)
            encoded: bytes = answer.SerializeToString()
            return encoded

        return export

    async def _abort(self, signal: str, context: Any, error: HttpError | OtlpError) -> NoReturn:
        code = _CODES[GRPC_CODES.get(error.status, 2)]
        if code is not grpc.StatusCode.UNAUTHENTICATED:
            log.warning("OTLP/gRPC request refused with %s: %s", code.name, error.message)
        self._count(signal, code)
        trailing = _retry_metadata(error.message) if code is grpc.StatusCode.UNAVAILABLE else ()
        await context.abort(code, error.message, trailing)
        raise AssertionError("abort raises")

    def _count(self, signal: str, code: grpc.StatusCode) -> None:
        self._intake.stats.requests.labels(f"grpc_{signal}", code.name).inc()


def _signal(name: str) -> Signal:
    return "metrics" if name == "metrics" else "logs"


def _retry_metadata(message: str) -> tuple[tuple[str, bytes], ...]:
    """When to come again: in the status's details, as the specification has it, and where the Python SDK looks."""
    retry = RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_S))
    details = AnyMessage()
    details.Pack(retry)
    status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message=message, details=[details])
    return (
        ("grpc-status-details-bin", status.SerializeToString()),
        ("google.rpc.retryinfo-bin", retry.SerializeToString()),
    )


def _host(peer: str) -> str:
    """The address in `ipv4:127.0.0.1:5` or `ipv6:%5B::1%5D:5`."""
    _, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]")
