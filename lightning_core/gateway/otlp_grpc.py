"""The OTLP/gRPC receiver: the same intake as OTLP/HTTP, on a port of its own.

Requests reach the handlers as the bytes that were sent, also compressed ones (`grpc.per_message_decompression` is off):
gRPC itself would inflate a bomb without a limit, and nothing is encoded again on the way to the spool.

There is no URL path in gRPC, so an attempt is known by its token alone, in the metadata `authorization: Bearer …`.

A handler is one of a stream, of which it takes one message: gRPC would read a single one, of any size, before it asked who sends
it. So the sender is known first, and its message is read when it is its turn; until then gRPC holds the sender back.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from lightning_core.gateway.access import Access, Caller, token_of
from lightning_core.gateway.http import BODY_S, HttpError, Take
from lightning_core.gateway.intake import GRPC_CODES, RETRY_AFTER_S, Intake, Signal
from lightning_core.gateway.room import Turns
from lightning_core.otlp.messages import OtlpError
from lightning_core.otlp.receive import sniff_encoding
from lightning_core.otlp.spans import PROTOBUF

log = logging.getLogger(__name__)

_STREAMS = 64  # of a connection at one time
_READ_BYTES, _LEAST_TURNS = 512_000_000, 4  # of messages that are being read
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_SERVICES: dict[Signal, str] = {
    "traces": "opentelemetry.proto.collector.trace.v1.TraceService",
    "metrics": "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "logs": "opentelemetry.proto.collector.logs.v1.LogsService",
}


class GrpcReceiver:
    """A gRPC server on the running event loop; `start` binds, `stop` drains."""

    def __init__(self, access: Access, intake: Intake) -> None:
        self._access = access
        self._intake = intake
        self._turns = Turns(max(_LEAST_TURNS, _READ_BYTES // intake.max_body))
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", intake.max_body),
                ("grpc.max_concurrent_streams", _STREAMS),
                ("grpc.http2.bdp_probe", 0),  # what is sent before it is asked for stays at 64 KB a stream
                ("grpc.per_message_decompression", 0),
                ("grpc.so_reuseport", 0),  # else two servers share a port and each gets a part of the spans
            ]
        )
        for signal, service in _SERVICES.items():
            handler = grpc.stream_unary_rpc_method_handler(self._handler(signal))
            generic = grpc.method_handlers_generic_handler(service, {"Export": handler})
            self._server.add_generic_rpc_handlers([generic])

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port. Raises OSError where the address cannot be had."""
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

    def _handler(self, signal: Signal) -> Any:
        async def export(_: Any, context: Any) -> bytes:
            try:
                metadata = dict(context.invocation_metadata() or ())
                token = token_of(metadata.get("authorization"))
                caller = self._access.identify_sender(token, _host(context.peer()))
                with self._intake.admitted(caller) as take:
                    request = await self._read(caller, context, take)
                    how = (request, PROTOBUF, sniff_encoding(request))
                    answer = await self._intake.answer(signal, caller, *how, take)
            except (HttpError, OtlpError) as error:
                # Its traceback would keep the message for as long as the client takes to hear of it.
                await self._abort(signal, context, error.with_traceback(None))
            self._count(signal, grpc.StatusCode.OK)
            encoded: bytes = answer.SerializeToString()
            return encoded

        return export

    async def _read(self, caller: Caller, context: Any, take: Take) -> bytes:
        """Return the sender's message; HttpError 408 where it takes too long to come, 503 where too many wait."""
        async with self._turns.turn(caller):
            try:
                async with asyncio.timeout(BODY_S):
                    # Not by the iterator of messages: it would keep this one until it is collected.
                    message: bytes | Any = await context.read()
            except TimeoutError:
                raise HttpError(408, f"the message did not come within {BODY_S:.0f} s") from None
            request = b"" if message is grpc.aio.EOF else bytes(message)
            take(len(request))
            return request

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


def _retry_metadata(message: str) -> tuple[tuple[str, bytes], ...]:
    """Return when to come again: in the status's details, as the specification has it, and where Python's SDK looks."""
    retry = RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_S))
    details = AnyMessage()
    details.Pack(retry)
    status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message=message, details=[details])
    return (
        ("grpc-status-details-bin", status.SerializeToString()),
        ("google.rpc.retryinfo-bin", retry.SerializeToString()),
    )


def _host(peer: str) -> str:
    """Return the address in `ipv4:127.0.0.1:5` or `ipv6:%5B::1%5D:5`."""
    _, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]")
